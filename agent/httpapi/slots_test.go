package httpapi

import (
	"fmt"
	"testing"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

func TestSlots(t *testing.T) {
	s := newSlots()
	greedy := localapi.Auth{Bearer: "greedy"}
	var release []func()
	for i := range maxPerCaller {
		f, err := s.take(greedy)
		if err != nil {
			t.Fatalf("take %d = %v", i, err)
		}
		release = append(release, f)
	}
	if _, err := s.take(greedy); sandbox.KindOf(err) != sandbox.KindQuota {
		t.Errorf("one more = %v, want %s", err, sandbox.KindQuota)
	}
	f, err := s.take(localapi.Auth{Bearer: "other"})
	if err != nil {
		t.Errorf("another caller = %v, want nil", err)
	}
	f()
	release[0]()
	if f, err := s.take(greedy); err != nil {
		t.Errorf("after one ended = %v, want nil", err)
	} else {
		release[0] = f
	}
	for i := 0; s.total < maxRequests; i++ {
		f, err := s.take(localapi.Auth{Bearer: localapi.Secret(fmt.Sprint("caller ", i))})
		if err != nil {
			t.Fatal(err)
		}
		release = append(release, f)
	}
	if _, err := s.take(localapi.Auth{Bearer: "late"}); sandbox.KindOf(err) != sandbox.KindCapacity {
		t.Errorf("a full service = %v, want %s", err, sandbox.KindCapacity)
	}
	for _, f := range release {
		f()
	}
	if s.total != 0 || len(s.caller) != 0 {
		t.Errorf("%d slots and %d callers left", s.total, len(s.caller))
	}
}
