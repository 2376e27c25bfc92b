package ephemeralkeys

import (
	"bytes"
	"testing"
	"time"
)

func TestCheckKRL(t *testing.T) {
	whole, err := MarshalKRL(KRL{Version: 3, Generated: time.Unix(1, 0), Comment: "c", Serials: []uint64{1, 2, 3, 4, 900}, KeyIDs: []string{"podspawn:h:l:s"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckKRL(whole); err != nil {
		t.Errorf("a whole list: %v", err)
	}
	const head = 8 + 4 + 3*8 + 4 + 4 + 1 // alone it is an empty list
	for n := range whole {
		if err := CheckKRL(whole[:n]); err == nil && n != head {
			t.Errorf("cut to %d of %d bytes: no error", n, len(whole))
		}
	}
	if CheckKRL(bytes.Replace(whole, []byte("SSHKRL"), []byte("NOTKRL"), 1)) == nil || CheckKRL(nil) == nil {
		t.Error("what is no list passes")
	}
}

func FuzzCheckKRLNeverPanics(f *testing.F) {
	whole, err := MarshalKRL(KRL{Serials: []uint64{7}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:30])
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = CheckKRL(b) // any answer is right; only a panic is not
	})
}
