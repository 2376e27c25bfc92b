package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/agent/httpapi"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

const goodToken = "good.test.token"

// fakeService is the API with its real HTTP handlers over an imagined daemon.
// Names choose what happens: see Create. It is safe for concurrent use.
type fakeService struct {
	ca ssh.Signer

	mu    sync.Mutex // guards all
	all   []api.Sandbox
	calls []string
}

// startFake serves until the test ends.
func startFake(t testing.TB) (*fakeService, string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeService{}
	if f.ca, err = ssh.NewSignerFromKey(key); err != nil {
		t.Fatal(err)
	}
	h, err := httpapi.New(httpapi.Config{Service: f})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return f, srv.URL
}

func (f *fakeService) As(auth localapi.Auth) api.API { return &fakeAPI{f: f, auth: auth} }

func (f *fakeService) WhoAmI(_ context.Context, auth localapi.Auth) (sandbox.Caller, error) {
	if auth.Bearer.Reveal() != goodToken {
		return sandbox.Caller{}, sandbox.Errorf(sandbox.KindUnauthorized, "ask for a new token", "the token is not valid")
	}
	return sandbox.Caller{Tenant: "t", Subject: "t", Scopes: []sandbox.Scope{sandbox.ScopeRead, sandbox.ScopeRun, sandbox.ScopeAdmin}}, nil
}

func (f *fakeService) Ready(context.Context) ([]string, error) { return nil, nil }

type fakeAPI struct {
	api.API // what no test of this package reaches
	f       *fakeService
	auth    localapi.Auth
}

func (a *fakeAPI) enter(call string) (func(), error) {
	if _, err := a.f.WhoAmI(context.Background(), a.auth); err != nil {
		return nil, err
	}
	a.f.mu.Lock()
	a.f.calls = append(a.f.calls, call)
	return a.f.mu.Unlock, nil
}

// find returns the sandbox; "denied", "down" and "gone" are errors by name.
func (a *fakeAPI) find(ref string) (*api.Sandbox, error) {
	switch ref {
	case "denied":
		return nil, sandbox.Errorf(sandbox.KindPolicy, "ask an administrator", "the policy denies it")
	case "down":
		return nil, sandbox.Errorf(sandbox.KindUnavailable, "start it", "the podspawn daemon does not answer")
	case "gone":
		return nil, sandbox.Errorf(sandbox.KindGone, "make another", "sandbox gone is gone")
	}
	for i := range a.f.all {
		if string(a.f.all[i].ID) == ref || a.f.all[i].Name == ref {
			return &a.f.all[i], nil
		}
	}
	return nil, sandbox.Errorf(sandbox.KindNotFound, "podspawn list shows those that exist", "there is no sandbox %s", ref)
}

// Create makes a sandbox, except for the names full (quota) and those of find.
func (a *fakeAPI) Create(_ context.Context, r api.CreateRequest) (api.Sandbox, error) {
	leave, err := a.enter("create")
	if err != nil {
		return api.Sandbox{}, err
	}
	defer leave()
	switch {
	case r.Name == "full":
		return api.Sandbox{}, sandbox.Errorf(sandbox.KindQuota, "destroy one", "t already has 5 sandboxes")
	case r.Image == "missing":
		return api.Sandbox{}, sandbox.Errorf(sandbox.KindImageNotFound, "podspawn image list", "there is no image missing")
	case strings.Contains(r.Podfile, "volumes"):
		return api.Sandbox{}, sandbox.Errorf(sandbox.KindInvalidSpec, "leave it out", "volumes is not supported yet")
	case r.Egress == "full":
		return api.Sandbox{}, sandbox.Errorf(sandbox.KindInvalidSpec, "use none", "egress %s is not supported yet", r.Egress)
	}
	id := sandbox.ID(fmt.Sprintf("sbx_%016d", len(a.f.all)))
	s := api.Sandbox{
		ID: id, Login: id.Login(), Name: r.Name, Labels: r.Labels, State: sandbox.StateReady, Image: "podspawn/base",
		CreatedAt: time.Now().Truncate(time.Second), ExpiresAt: time.Now().Add(time.Hour).Truncate(time.Second),
		SpecDigest: "sha256:" + sandbox.Digest(strings.Repeat("0", 64)), Egress: sandbox.EgressNone,
		Limits:    api.Limits{CPUs: 1, Memory: 1 << 30, Disk: 10 << 30, PIDs: 512},
		Lifecycle: api.Lifecycle{OnExit: sandbox.OnExitDestroy, Grace: api.Duration(time.Minute), IdleTimeout: api.Duration(15 * time.Minute)},
	}
	if r.Grace != nil {
		s.Lifecycle.Grace = *r.Grace
	}
	if r.PublicKey != "" {
		block, err := a.sign(s, r.PublicKey, 1)
		if err != nil {
			return api.Sandbox{}, err
		}
		s.SSH = &block
	}
	a.f.all = append(a.f.all, s)
	return s, nil
}

// Validate resolves nothing; a text with 100h is denied.
func (a *fakeAPI) Validate(_ context.Context, r api.CreateRequest) (api.Validation, error) {
	leave, err := a.enter("validate")
	if err != nil {
		return api.Validation{}, err
	}
	defer leave()
	v := api.Validation{Podfile: "image: podspawn/base\n", SpecDigest: "sha256:" + sandbox.Digest(strings.Repeat("0", 64)), Denied: []api.Denial{}}
	if strings.Contains(r.Podfile, "100h") {
		v.Denied = append(v.Denied, api.Denial{Code: sandbox.KindPolicy, Message: "a ttl of 100h0m0s is not allowed", Hint: "ask for at most 24h"})
	}
	return v, nil
}

func (a *fakeAPI) Get(_ context.Context, ref string) (api.Sandbox, error) {
	leave, err := a.enter("get")
	if err != nil {
		return api.Sandbox{}, err
	}
	defer leave()
	s, err := a.find(ref)
	if err != nil {
		return api.Sandbox{}, err
	}
	got := *s
	got.LastRefusals = []api.Refusal{{Time: time.Now(), Serial: 7, Source: "192.0.2.1", Reason: "the certificate's \x1b[31muses are used up"}}
	return got, nil
}

func (a *fakeAPI) List(_ context.Context, r api.ListRequest) (api.List, error) {
	leave, err := a.enter("list")
	if err != nil {
		return api.List{}, err
	}
	defer leave()
	out := api.List{Sandboxes: []api.Sandbox{}}
	for _, s := range a.f.all {
		if s.State.Final() || (r.Cursor != "" && string(s.ID) <= r.Cursor) {
			continue
		}
		if len(out.Sandboxes) == 2 { // pages of two
			out.Next = string(out.Sandboxes[1].ID)
			break
		}
		out.Sandboxes = append(out.Sandboxes, s)
	}
	return out, nil
}

func (a *fakeAPI) Extend(_ context.Context, ref string, ttl time.Duration) (api.Sandbox, error) {
	leave, err := a.enter("extend")
	if err != nil {
		return api.Sandbox{}, err
	}
	defer leave()
	s, err := a.find(ref)
	if err != nil {
		return api.Sandbox{}, err
	}
	if t := time.Now().Add(ttl); t.After(s.ExpiresAt) {
		s.ExpiresAt = t
	}
	return *s, nil
}

func (a *fakeAPI) Destroy(_ context.Context, ref string) (api.Sandbox, error) {
	leave, err := a.enter("destroy " + ref)
	if err != nil {
		return api.Sandbox{}, err
	}
	defer leave()
	s, err := a.find(ref)
	if err != nil {
		return api.Sandbox{}, err
	}
	s.State, s.Reason = sandbox.StateDestroyed, sandbox.ReasonRequested
	return *s, nil
}

func (a *fakeAPI) Certificate(_ context.Context, ref string, r api.CertificateRequest) (api.SSH, error) {
	leave, err := a.enter("certificate")
	if err != nil {
		return api.SSH{}, err
	}
	defer leave()
	s, err := a.find(ref)
	if err != nil {
		return api.SSH{}, err
	}
	return a.sign(*s, r.PublicKey, 7)
}

// sign answers with a good certificate beside a hostile ssh_config, which no
// client may use (threat 91).
func (a *fakeAPI) sign(s api.Sandbox, public string, serial uint64) (api.SSH, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(public))
	if err != nil {
		return api.SSH{}, err
	}
	until := time.Now().Add(5 * time.Minute).Truncate(time.Second)
	cert := &ssh.Certificate{
		Key: key, Serial: serial, CertType: ssh.UserCert, KeyId: "podspawn:test", ValidPrincipals: []string{s.Login},
		ValidAfter: uint64(time.Now().Add(-time.Minute).Unix()), ValidBefore: uint64(until.Unix()),
	}
	if err := cert.SignCert(rand.Reader, a.f.ca); err != nil {
		return api.SSH{}, err
	}
	return api.SSH{
		Host: "127.0.0.1", Port: 2022, User: s.Login, Command: "touch hostile", Config: "Host *\n  ProxyCommand touch hostile\n",
		KnownHosts:  "@cert-authority * " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(a.f.ca.PublicKey()))),
		Certificate: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(cert))),
		ValidBefore: until, Serial: serial,
	}, nil
}

func (a *fakeAPI) Exec(context.Context, string, api.ExecRequest) (api.ExecResult, error) {
	return api.ExecResult{}, sandbox.Errorf(sandbox.KindInternal, "", "not part of this test")
}

func (a *fakeAPI) CA(context.Context) (api.CA, error) {
	return api.CA{}, sandbox.Errorf(sandbox.KindInternal, "", "not part of this test")
}

func (a *fakeAPI) CreateToken(_ context.Context, r api.TokenRequest) (api.Token, error) {
	leave, err := a.enter("token " + r.Subject)
	if err != nil {
		return api.Token{}, err
	}
	defer leave()
	return api.Token{Token: "new.token.text", ID: "tok_0000000000000000", ExpiresAt: time.Now().Add(time.Hour).Truncate(time.Second)}, nil
}

var (
	_ api.API         = (*fakeAPI)(nil)
	_ httpapi.Service = (*fakeService)(nil)
)
