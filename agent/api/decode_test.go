package api

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

func TestDecode(t *testing.T) {
	tests := []struct {
		name string
		body string
		kind sandbox.Kind // "" when it is accepted
		msg  string       // part of the message
		hint string       // part of the hint
	}{
		{"ok/empty object", `{}`, "", "", ""},
		{"ok/fields", `{"image":"a","ttl":"90s","labels":{"a":"b"}}`, "", "", ""},
		{"ok/seconds", `{"ttl":90}`, "", "", ""},
		{"refused/nothing", ``, sandbox.KindInvalidSpec, "empty", "JSON object"},
		{"refused/null", `null`, sandbox.KindInvalidSpec, "not a JSON object", ""},
		{"refused/array", `[]`, sandbox.KindInvalidSpec, "not a JSON object", ""},
		{"refused/cut off", `{"image":`, sandbox.KindInvalidSpec, "not valid JSON", ""},
		{"refused/trailing object", `{}{}`, sandbox.KindInvalidSpec, "after the JSON object", ""},
		{"refused/trailing garbage", `{} x`, sandbox.KindInvalidSpec, "after the JSON object", ""},
		{"refused/unknown field", `{"imagee":"a"}`, sandbox.KindUnknownField, `"imagee"`, "did you mean image?"},
		{"refused/dash for underscore", `{"idle-timeout":"1m"}`, sandbox.KindUnknownField, "idle-timeout", "did you mean idle_timeout?"},
		{"refused/other case", `{"Image":"a"}`, sandbox.KindUnknownField, `"Image"`, "did you mean image?"},
		{"refused/nothing near", `{"zzzzzzzzz":1}`, sandbox.KindUnknownField, "zzzzzzzzz", "known are podfile"},
		{"refused/twice", `{"image":"a","image":"b"}`, sandbox.KindInvalidSpec, `"image" is given twice`, ""},
		{"refused/twice, nested", `{"labels":{"a":"1","a":"2"}}`, sandbox.KindInvalidSpec, `"labels.a" is given twice`, ""},
		{"refused/twice, in an array", `{"spec":{"x":[{"a":1,"a":2}]}}`, sandbox.KindInvalidSpec, "is given twice", ""},
		{"refused/wrong type", `{"image":5}`, sandbox.KindInvalidSpec, "image: a number", "use a string"},
		{"refused/bad duration", `{"ttl":"soon"}`, sandbox.KindInvalidSpec, `"soon" is no duration`, ""},
		{"refused/negative duration", `{"ttl":"-1s"}`, sandbox.KindInvalidSpec, "not negative", ""},
		{"refused/not yet", `{"project":"x"}`, sandbox.KindInvalidSpec, "project is not supported yet", "leave it out"},
		{"refused/not UTF-8", "{\"image\":\"\xff\"}", sandbox.KindInvalidSpec, "UTF-8", ""},
		{"refused/deep", `{"spec":{"a":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}}`, sandbox.KindInvalidSpec, "nests deeper", ""},
		{"refused/large", `{"image":"` + strings.Repeat("a", MaxBody) + `"}`, sandbox.KindInvalidSpec, "exceeds", ""},
		{"refused/not from the body", `{"Maker":"mcp"}`, sandbox.KindUnknownField, "Maker", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got CreateRequest
			err := Decode([]byte(tt.body), &got, "project")
			if tt.kind == "" {
				if err != nil {
					t.Fatalf("Decode(%s) = %v, want nil", tt.body, err)
				}
				return
			}
			if err == nil {
				t.Fatalf("Decode = nil, want %s", tt.kind)
			}
			e := sandbox.Public(err)
			if e.Kind != tt.kind || !strings.Contains(e.Msg, tt.msg) || !strings.Contains(e.Hint, tt.hint) || e.Hint == "" {
				t.Errorf("Decode = %s %q (%q), want %s, …%s…, hint …%s…", e.Kind, e.Msg, e.Hint, tt.kind, tt.msg, tt.hint)
			}
		})
	}
}

func TestDurationRoundTrip(t *testing.T) {
	b, err := json.Marshal(Duration(90 * time.Second))
	if err != nil || string(b) != `"1m30s"` {
		t.Fatalf("Marshal = %s, %v", b, err)
	}
	var d Duration
	if err := json.Unmarshal(b, &d); err != nil || time.Duration(d) != 90*time.Second {
		t.Errorf("Unmarshal = %v, %v", time.Duration(d), err)
	}
}

// FuzzDecodeNeverPanics also asserts that what is accepted has no field twice
// and is what encoding/json alone would have made of it.
func FuzzDecodeNeverPanics(f *testing.F) {
	for _, s := range []string{`{}`, `{"image":"a"}`, `{"spec":{"a":[1,{"b":null}]}}`, `{"ttl":1e400}`, `{"a":1}{`, `[`, "\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var got CreateRequest
		if err := Decode(data, &got); err != nil {
			if sandbox.KindOf(err) == sandbox.KindInternal {
				t.Errorf("Decode = internal error %v", err)
			}
			return
		}
		if !json.Valid(data) {
			t.Errorf("accepted what is not JSON: %q", data)
		}
	})
}
