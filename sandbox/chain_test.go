package sandbox

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestLineIsStable: logs that exist must still verify, so the form never changes;
// a new field goes before prev and is left out when empty.
func TestLineIsStable(t *testing.T) {
	e := Event{
		Time: time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600)), Event: EventSessionOpened, Tenant: "t", Subject: "s",
		Actor: ActorHuman, Sandbox: "sbx_x", SpecDigest: "sha256:x", Token: "tok_x", Serial: 1<<64 - 1, Source: "192.0.2.1",
		Session: "con_x", Reason: "a<b>", Detail: map[string]string{"b": "2", "a": "1"},
	}
	sealed, err := e.Seal(7, GenesisHash)
	if err != nil {
		t.Fatal(err)
	}
	got, err := sealed.Line()
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"seq":7,"time":"2026-01-02T02:04:05.000000006Z","event":"session.opened","tenant":"t","subject":"s","actor":"human",` +
		`"sandbox":"sbx_x","spec_digest":"sha256:x","token_id":"tok_x","cert_serial":18446744073709551615,"source":"192.0.2.1",` +
		`"session":"con_x","reason":"a\u003cb\u003e","detail":{"a":"1","b":"2"},` +
		`"prev":"0000000000000000000000000000000000000000000000000000000000000000",` +
		`"hash":"HASH"}`
	if diff := cmp.Diff(strings.Replace(want, "HASH", sealed.Hash, 1), string(got)); diff != "" {
		t.Errorf("Line (-want +got):\n%s", diff)
	}
	const hash = "eb2cd99c7ff11b8981a6b6570a0145a2706eb4d49f294e523f0746be0b70be87"
	if sealed.Hash != hash {
		t.Errorf("hash = %s, want %s", sealed.Hash, hash)
	}
}

// FuzzSealedEventRoundTrip: every sealed event reads back as itself, and no byte
// of its line can change unnoticed.
func FuzzSealedEventRoundTrip(f *testing.F) {
	f.Add("a", "b", "c", int64(1), uint64(2), 5, byte(1))
	f.Add("\xff", "\u2028\x00", "\ufffd", int64(-1), uint64(1<<63), 0, byte(0x20))
	f.Fuzz(func(t *testing.T, reason, key, val string, nanos int64, serial uint64, at int, flip byte) {
		e := Event{Time: time.Unix(0, nanos), Event: EventKind(val), Serial: serial, Reason: reason, Detail: map[string]string{key: val}}
		sealed, err := e.Seal(3, GenesisHash)
		if err != nil {
			return // too large
		}
		line, err := sealed.Line()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseLine(line)
		if err != nil {
			t.Fatalf("ParseLine(%s) = %v", line, err)
		}
		if diff := cmp.Diff(sealed, got); diff != "" {
			t.Errorf("ParseLine (-want +got):\n%s", diff)
		}
		if flip == 0 {
			return
		}
		line[uint(at)%uint(len(line))] ^= flip
		if e, err := ParseLine(line); !errors.Is(err, ErrBrokenChain) {
			t.Errorf("ParseLine of a changed line = %+v, %v, want %v", e, err, ErrBrokenChain)
		}
	})
}

func TestSealRefusesWhatIsTooLarge(t *testing.T) {
	if _, err := (Event{Reason: strings.Repeat("\x00", MaxEventLine/5)}).Seal(1, GenesisHash); err == nil {
		t.Error("Seal succeeded, want an error")
	}
}
