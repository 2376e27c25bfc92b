package agent

import (
	"strings"
	"testing"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

func TestValidateMakesNothing(t *testing.T) {
	d, a := alice(t)
	v, err := a.Validate(t.Context(), api.CreateRequest{Podfile: "env: {A: b}\nlifecycle: {ttl: 100s}"})
	if err != nil || len(v.Denied) != 0 || v.Caps.SandboxesLeft != 5 {
		t.Fatalf("Validate = %+v, %v", v, err)
	}
	if n := len(d.Requests(localapi.OpCreate)); n != 0 {
		t.Errorf("%d creations", n)
	}
	// The resolved text is the same spec.
	again, err := a.Validate(t.Context(), api.CreateRequest{Podfile: v.Podfile})
	if err != nil || again.SpecDigest != v.SpecDigest || again.Podfile != v.Podfile || !strings.Contains(v.Podfile, "ttl: 1m40s") {
		t.Errorf("of its own text: %+v, %v, want %+v", again, err, v)
	}
	made, err := a.Create(t.Context(), api.CreateRequest{Podfile: v.Podfile})
	if err != nil || made.SpecDigest != v.SpecDigest {
		t.Errorf("what is made has digest %s, want %s", made.SpecDigest, v.SpecDigest)
	}
	if v, err := a.Validate(t.Context(), api.CreateRequest{Podfile: "lifecycle: {ttl: 20h}"}); err != nil || len(v.Denied) != 1 || v.Denied[0].Code != sandbox.KindPolicy {
		t.Errorf("Validate of a long ttl = %+v, %v", v, err)
	}
	if _, err := a.Validate(t.Context(), api.CreateRequest{Podfile: "imagee: x"}); sandbox.KindOf(err) != sandbox.KindUnknownField {
		t.Errorf("Validate of a misspelling = %v", err)
	}
}
