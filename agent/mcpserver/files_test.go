package mcpserver

import (
	"context"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"github.com/podspawn/podspawn/agent/agenttest"
	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

func TestFilesOverMCP(t *testing.T) {
	d, base := serve(t)
	c := connect(t, base, agenttest.Alice, mcp.ProtocolVersion20251125)
	s, _ := call(t, c, "sandbox_create", nil)
	id := s["id"]
	text := strings.Repeat("0123456789abcdef", 2000) + "é"
	got, ok := call(t, c, "file_write", map[string]any{"id": id, "files": []map[string]any{
		{"path": "a/long.txt", "content": text},
		{"path": "bin", "content": base64.StdEncoding.EncodeToString([]byte{0, 1, 2}), "encoding": "base64", "mode": "0755"},
	}})
	if !ok || len(got["written"].([]any)) != 2 {
		t.Fatalf("file_write = %v", got)
	}
	if st, err := os.Stat(filepath.Join(d.Work(), "bin")); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("bin: %v %v", st, err)
	}

	// All of a long file, by following next_offset.
	var read strings.Builder
	for offset, n := 0.0, 0; ; n++ {
		part, ok := call(t, c, "file_read", map[string]any{"id": id, "path": "a/long.txt", "offset": offset})
		if !ok || part["encoding"] != "utf-8" || n > 3 {
			t.Fatalf("file_read = %v", part)
		}
		read.WriteString(part["content"].(string))
		if part["truncated"] != true {
			break
		}
		offset = part["next_offset"].(float64)
	}
	if read.String() != text {
		t.Errorf("read %d bytes, want %d", read.Len(), len(text))
	}
	if part, ok := call(t, c, "file_read", map[string]any{"id": id, "path": "a/long.txt", "offset": -2}); !ok || part["content"] != "é" {
		t.Errorf("tail = %v", part)
	}
	if part, ok := call(t, c, "file_read", map[string]any{"id": id, "path": "bin"}); !ok || part["encoding"] != "base64" || part["content"] != "AAEC" {
		t.Errorf("bin = %v", part)
	}
	if got, ok := call(t, c, "file_edit", map[string]any{"id": id, "path": "a/long.txt", "old": "é", "new": "!\n"}); !ok || got["replacements"] != 1.0 {
		t.Errorf("file_edit = %v", got)
	}
	if got, ok := call(t, c, "file_list", map[string]any{"id": id}); !ok || len(got["entries"].([]any)) != 2 {
		t.Errorf("file_list = %v", got)
	}

	refused := []struct {
		name, tool string
		args       map[string]any
		code       sandbox.Kind
	}{
		{"occurs often", "file_edit", map[string]any{"path": "a/long.txt", "old": "0", "new": "1"}, sandbox.KindConflict},
		{"does not occur", "file_edit", map[string]any{"path": "a/long.txt", "old": "zzz", "new": "1"}, sandbox.KindConflict},
		{"nothing to replace", "file_edit", map[string]any{"path": "a/long.txt", "old": "", "new": "1"}, sandbox.KindInvalidSpec},
		{"no such file", "file_read", map[string]any{"path": "none"}, sandbox.KindNotFound},
		{"folder", "file_read", map[string]any{"path": "a"}, sandbox.KindInvalidSpec},
		{"not text", "file_read", map[string]any{"path": "bin", "encoding": "utf-8"}, sandbox.KindInvalidSpec},
		{"limit", "file_read", map[string]any{"path": "bin", "limit": readMax + 1}, sandbox.KindInvalidSpec},
		{"no content", "file_write", map[string]any{"files": []map[string]any{{"path": "x"}}}, sandbox.KindInvalidSpec},
		{"bad base64 in the second", "file_write", map[string]any{"files": []map[string]any{{"path": "x", "content": ""}, {"path": "y", "content": "?", "encoding": "base64"}}}, sandbox.KindInvalidSpec},
		{"setuid", "file_write", map[string]any{"files": []map[string]any{{"path": "x", "content": "", "mode": "4755"}}}, sandbox.KindInvalidSpec},
		{"no files", "file_write", map[string]any{"files": []any{}}, sandbox.KindInvalidSpec},
		{"unknown field", "file_write", map[string]any{"file": "x"}, sandbox.KindUnknownField},
		{"list of a file", "file_list", map[string]any{"path": "bin"}, sandbox.KindInvalidSpec},
	}
	for _, tt := range refused {
		t.Run("refused/"+tt.name, func(t *testing.T) {
			tt.args["id"] = id
			if got, ok := call(t, c, tt.tool, tt.args); ok || got["code"] != string(tt.code) {
				t.Errorf("%s = %v, want %s", tt.tool, got, tt.code)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(d.Work(), "x")); err == nil {
		t.Error("a refused call wrote its first file")
	}
	other := connect(t, base, agenttest.Bob, mcp.ProtocolVersion20251125)
	if got, ok := call(t, other, "file_read", map[string]any{"id": id, "path": "bin"}); ok || got["code"] != string(sandbox.KindNotFound) {
		t.Errorf("another tenant's file_read = %v, want not_found", got)
	}
}

func TestTextPrefixCutsBetweenCharacters(t *testing.T) {
	for in, want := range map[string]string{"aé": "aé", "a\xc3": "a", "a\xe2\x82": "a", "a\xf0\x9f\x98": "a", "a\x00": "-", "\xff\xfe": "-", "": ""} {
		got, ok := textPrefix([]byte(in), true)
		if !ok {
			got = "-"
		}
		if got != want {
			t.Errorf("textPrefix(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzArgumentsNeverPanic feeds every tool with foreign arguments.
func FuzzArgumentsNeverPanic(f *testing.F) {
	for _, s := range []string{`{}`, `{"id":"x","files":[{"path":"p","content":"c","mode":"7"}]}`, `{"id":"x","path":"p","offset":-1,"limit":3}`, `{"id":"x","command":"a","wait_seconds":1}`, `[]`, `{"id":1}`} {
		f.Add([]byte(s))
	}
	all := tools(false)
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, tool := range all {
			_, err := tool.call(t.Context(), &Server{}, refusingAPI{}, raw)
			if err != nil && err != errNop && sandbox.Public(err).Msg == "" {
				t.Errorf("%s(%s) = %v, without words", tool.name, raw, err)
			}
		}
	})
}

var _ api.API = refusingAPI{}

// refusingAPI fails every call that a tool may make.
type refusingAPI struct{ nopAPI }

func (refusingAPI) Get(context.Context, string) (api.Sandbox, error) { return api.Sandbox{}, errNop }

func (refusingAPI) Destroy(context.Context, string) (api.Sandbox, error) {
	return api.Sandbox{}, errNop
}

func (refusingAPI) Certificate(context.Context, string, api.CertificateRequest) (api.SSH, error) {
	return api.SSH{}, errNop
}

func (refusingAPI) Exec(context.Context, string, api.ExecRequest) (api.ExecResult, error) {
	return api.ExecResult{}, errNop
}

func (refusingAPI) Validate(context.Context, api.CreateRequest) (api.Validation, error) {
	return api.Validation{}, errNop
}

func (refusingAPI) PollExec(context.Context, string, string, api.ExecPoll) (api.ExecResult, error) {
	return api.ExecResult{}, errNop
}

func (refusingAPI) InputExec(context.Context, string, string, api.ExecInput) (api.ExecAccepted, error) {
	return api.ExecAccepted{}, errNop
}

func (refusingAPI) SignalExec(context.Context, string, string, api.ExecSignal) (api.ExecAccepted, error) {
	return api.ExecAccepted{}, errNop
}

func (refusingAPI) Extend(context.Context, string, time.Duration) (api.Sandbox, error) {
	return api.Sandbox{}, errNop
}

func (refusingAPI) OpenFile(context.Context, string, api.FileRange) (api.FileContent, error) {
	return api.FileContent{}, errNop
}

func (refusingAPI) WriteFile(context.Context, string, api.FileWrite) (api.FileWritten, error) {
	return api.FileWritten{}, errNop
}

func (refusingAPI) ListFiles(context.Context, string, string) (api.FileList, error) {
	return api.FileList{}, errNop
}

func TestCommandsThatRunOnOverMCP(t *testing.T) {
	d, base := serve(t)
	c := connect(t, base, agenttest.Alice, mcp.ProtocolVersion20251125)
	s, _ := call(t, c, "sandbox_create", nil)
	got, ok := call(t, c, "sandbox_exec", map[string]any{"id": s["id"], "command": `echo begun; read x; printf '\033[31m%s\n' $x; exit 3`, "background": true, "wait_seconds": 0})
	if !ok || got["running"] != true || got["exit_code"] != -1.0 || !strings.Contains(got["next"].(string), "exec_poll") {
		t.Fatalf("sandbox_exec = %v", got)
	}
	exec := got["exec_id"]
	if got, ok := call(t, c, "exec_input", map[string]any{"exec_id": exec, "data": "red\n", "eof": true}); !ok || got["exec_id"] != exec {
		t.Fatalf("exec_input = %v", got)
	}
	end, ok := call(t, c, "exec_poll", map[string]any{"exec_id": exec, "cursor": "0.0"})
	if !ok || end["running"] == true || end["exit_code"] != 3.0 || end["stdout"] != "begun\nred\n" {
		t.Errorf("exec_poll = %v", end)
	}
	if got, ok := call(t, c, "exec_poll", map[string]any{"exec_id": exec, "cursor": end["cursor"]}); !ok || got["stdout"] != "" {
		t.Errorf("exec_poll behind the end = %v", got)
	}
	got, ok = call(t, c, "sandbox_exec", map[string]any{"id": s["id"], "command": "sleep 600", "wait_seconds": 0.1})
	if !ok || got["running"] != true {
		t.Fatalf("sandbox_exec = %v", got)
	}
	call(t, c, "exec_input", map[string]any{"exec_id": got["exec_id"], "signal": "INT"})
	if got, ok := call(t, c, "exec_poll", map[string]any{"exec_id": got["exec_id"]}); !ok || got["signal"] != "INT" {
		t.Errorf("after INT: %v", got)
	}

	if got, ok := call(t, c, "sandbox_run", map[string]any{"command": "echo once; exit 2"}); !ok || got["exit_code"] != 2.0 || got["stdout"] != "once\n" {
		t.Errorf("sandbox_run = %v", got)
	}
	if n := len(d.Requests(localapi.OpDestroy)); n < 1 {
		t.Error("sandbox_run left its sandbox")
	}
	before := len(d.Requests(localapi.OpDestroy))
	got, ok = call(t, c, "sandbox_run", map[string]any{"command": "sleep 1; echo late", "wait_seconds": 0})
	if !ok || got["running"] != true || len(d.Requests(localapi.OpDestroy)) != before {
		t.Fatalf("sandbox_run = %v", got)
	}
	if got, ok := call(t, c, "exec_poll", map[string]any{"exec_id": got["exec_id"]}); !ok || got["stdout"] != "late\n" {
		t.Errorf("exec_poll = %v", got)
	}
	if n := len(d.Requests(localapi.OpDestroy)); n != before+1 {
		t.Errorf("%d destructions after the result was read, want 1", n-before)
	}
	if got, ok := call(t, c, "spec_validate", nil); !ok || got["caps"].(map[string]any)["sandboxes_left"] != 5.0 {
		t.Errorf("spec_validate = %v", got)
	}
	if got, ok := call(t, c, "sandbox_extend", map[string]any{"id": s["id"], "ttl": "3h"}); !ok || got["id"] != s["id"] {
		t.Errorf("sandbox_extend = %v", got)
	}
}
