package daemon

import (
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// Threat 72: no token begets a mightier one.
func TestTokenIsNoWiderThanTheOneThatMadeIt(t *testing.T) {
	w := open(t)
	caps := sandbox.Caps{MaxSandboxes: 2, MaxTTL: time.Hour}
	admin := sandbox.APIToken{
		ID: sandbox.NewToken("tok_"), Tenant: "t1", Subject: "ann", Caps: caps,
		Scopes: []sandbox.Scope{sandbox.ScopeAdmin}, IssuedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour),
	}
	if err := w.store.AddToken(t.Context(), admin, sandbox.Event{Time: time.Now(), Event: sandbox.EventTokenIssued}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		by   string
		in   localapi.TokenRequest
		want sandbox.Kind // "" is made
	}{
		{"as much", admin.ID, localapi.TokenRequest{Subject: "bob", Tenant: "t1", Caps: caps}, ""},
		{"nothing said", admin.ID, localapi.TokenRequest{Subject: "bob", Tenant: "t1"}, ""},
		{"more sandboxes", admin.ID, localapi.TokenRequest{Subject: "bob", Tenant: "t1", Caps: sandbox.Caps{MaxSandboxes: 3}}, sandbox.KindPolicy},
		{"a longer life", admin.ID, localapi.TokenRequest{Subject: "bob", Tenant: "t1", Caps: sandbox.Caps{MaxTTL: 2 * time.Hour}}, sandbox.KindPolicy},
		{"another tenant", admin.ID, localapi.TokenRequest{Subject: "bob", Tenant: "t2"}, sandbox.KindPolicy},
		{"its subject as another tenant", admin.ID, localapi.TokenRequest{Subject: "t2"}, sandbox.KindPolicy},
		{"without the scope", w.token("t1"), localapi.TokenRequest{Subject: "bob", Tenant: "t1"}, sandbox.KindInsufficientScope},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out localapi.TokenResponse
			lease, err := w.asAPI(localapi.OpToken, localapi.Auth{Bearer: localapi.Secret(c.by)}, c.in, &out)
			if err == nil {
				defer lease.Close()
			}
			if (err == nil) != (c.want == "") || err != nil && sandbox.KindOf(err) != c.want {
				t.Fatalf("token = %v, want %q", err, c.want)
			}
			if err != nil {
				return
			}
			got, err := w.store.Token(t.Context(), out.ID)
			if err != nil || got.Caps != caps || got.Tenant != "t1" {
				t.Errorf("made %+v, %v, want the caps %+v", got, err, caps)
			}
		})
	}
}

// One tenant's calls leave room for the others'.
func TestCallsOfOneTenantAreBounded(t *testing.T) {
	w := open(t)
	for range maxOfTenant {
		if _, ok := w.tenants.take("t1", maxOfTenant); !ok {
			t.Fatal("the limit is lower than it says")
		}
	}
	for tenant, want := range map[string]sandbox.Kind{"t1": sandbox.KindCapacity, "t2": ""} {
		_, err := w.asAPI(localapi.OpList, localapi.Auth{Bearer: localapi.Secret(w.token(tenant))}, localapi.ListRequest{}, nil)
		if (err == nil) != (want == "") || err != nil && sandbox.KindOf(err) != want {
			t.Errorf("list by %s = %v, want %q", tenant, err, want)
		}
	}
}
