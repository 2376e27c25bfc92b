package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/agent/sshconfig"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

const maxIdempotencyKey = 128

func (a *as) Create(ctx context.Context, r api.CreateRequest) (api.Sandbox, error) {
	spec, err := a.s.spec(r)
	if err != nil {
		return api.Sandbox{}, err
	}
	in := localapi.CreateRequest{
		Name: r.Name, Labels: r.Labels, Spec: spec, IdempotencyKey: r.IdempotencyKey,
		// A podfile that says what the default is gets the default's treatment.
		DefaultTTL: r.TTL == 0 && spec.Lifecycle.TTL == a.s.defaultsFor(r.Maker).Lifecycle.TTL,
	}
	if in.Name == "" {
		in.Name = spec.Name
	}
	if err := checkCreate(in, r); err != nil {
		return api.Sandbox{}, err
	}
	if r.IdempotencyKey != "" {
		if in.RequestDigest, err = requestDigest(r); err != nil {
			return api.Sandbox{}, err
		}
	}
	var out localapi.SandboxResponse
	if err := a.callFor(ctx, createTimeout, localapi.OpCreate, in, &out); err != nil {
		return api.Sandbox{}, err
	}
	v := view(out)
	if r.PublicKey == "" {
		return v, nil
	}
	block, err := a.Certificate(ctx, string(v.ID), api.CertificateRequest{PublicKey: r.PublicKey})
	if err != nil {
		if r.IdempotencyKey == "" {
			// Nobody will ever know its id: it would only wait for its deadline. With a
			// key the caller asks again and gets it.
			a.abandon(ctx, v.ID)
		}
		return api.Sandbox{}, err
	}
	v.SSH = &block
	return v, nil
}

// abandon destroys a sandbox whose creation the caller sees fail.
func (a *as) abandon(ctx context.Context, id sandbox.ID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	err := a.call(ctx, localapi.OpDestroy, localapi.DestroyRequest{Sandbox: string(id)}, nil)
	if err != nil {
		a.s.log.WarnContext(ctx, "sandbox left to its deadline", "sandbox", id, "error", err)
	}
}

func checkCreate(in localapi.CreateRequest, r api.CreateRequest) error {
	if in.Name != "" {
		if err := sandbox.ValidateName(in.Name); err != nil {
			return err
		}
	}
	if err := sandbox.ValidateLabels(in.Labels); err != nil {
		return err
	}
	switch r.Start {
	case "", "now":
	case "on_connect":
		return sandbox.Errorf(sandbox.KindInvalidSpec, "leave it out or use now", "start: on_connect is not supported yet by this version")
	default:
		return sandbox.Errorf(sandbox.KindInvalidSpec, "use now", "start: %q is unknown", clip(r.Start))
	}
	if r.PublicKey != "" {
		if _, _, err := sshconfig.PublicKey(r.PublicKey); err != nil {
			return badKey(err)
		}
	}
	if len(r.IdempotencyKey) > maxIdempotencyKey {
		return sandbox.Errorf(sandbox.KindInvalidSpec, "use a UUID", "the idempotency key exceeds %d bytes", maxIdempotencyKey)
	}
	for _, c := range []byte(r.IdempotencyKey) {
		if c <= ' ' || c > '~' {
			return sandbox.Errorf(sandbox.KindInvalidSpec, "use a UUID", "the idempotency key has other characters than printable ASCII")
		}
	}
	return nil
}

func badKey(err error) error {
	return &sandbox.Error{
		Kind: sandbox.KindInvalidSpec, Msg: "public_key: " + err.Error(),
		Hint: "send the content of one .pub file", Err: err,
	}
}

// requestDigest identifies what the caller asked for, so that the daemon can tell
// a repetition from another request under the same key.
func requestDigest(r api.CreateRequest) (string, error) {
	b, err := json.Marshal(struct {
		Maker   api.Maker
		Request api.CreateRequest
	}{r.Maker, r})
	if err != nil {
		return "", fmt.Errorf("digest request: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// spec returns the complete, checked spec that a request asks for.
func (s *Service) spec(r api.CreateRequest) (sandbox.Spec, error) {
	sources := 0
	for _, set := range []bool{r.Podfile != "", r.Spec != nil, r.Image != ""} {
		if set {
			sources++
		}
	}
	if sources > 1 {
		return sandbox.Spec{}, sandbox.Errorf(sandbox.KindInvalidSpec, "an image can also be named in the podfile",
			"give only one of podfile, spec and image")
	}
	spec, err := s.parse(r, s.defaultsFor(r.Maker))
	if err != nil {
		return sandbox.Spec{}, err
	}
	if r.Image != "" {
		spec.Image = r.Image
	}
	if len(r.Env) > 0 {
		env := maps.Clone(spec.Env)
		if env == nil {
			env = make(map[string]string, len(r.Env))
		}
		maps.Copy(env, r.Env)
		spec.Env = env
	}
	if r.TTL > 0 {
		spec.Lifecycle.TTL = time.Duration(r.TTL)
	}
	if r.IdleTimeout > 0 {
		spec.Lifecycle.IdleTimeout = time.Duration(r.IdleTimeout)
	}
	if r.OnExit != "" {
		spec.Lifecycle.OnExit = sandbox.OnExit(r.OnExit)
	}
	if r.Grace != nil {
		spec.Lifecycle.Grace = time.Duration(*r.Grace)
	}
	if r.Egress != "" {
		spec.Network.Egress = sandbox.Egress(r.Egress)
	}
	if err := spec.Validate(); err != nil {
		return sandbox.Spec{}, err
	}
	return spec, nil
}

// defaultsFor returns the defaults with the lifetime of the maker: the table
// under "Lifetime" in the public contract.
func (s *Service) defaultsFor(m api.Maker) sandbox.Defaults {
	d := s.defaults
	switch m {
	case api.MakerMCP:
		d.Lifecycle = sandbox.Lifecycle{TTL: 2 * time.Hour, IdleTimeout: 30 * time.Minute, OnExit: sandbox.OnExitKeep}
	case api.MakerRun:
		d.Lifecycle = sandbox.Lifecycle{TTL: time.Hour, IdleTimeout: 15 * time.Minute, OnExit: sandbox.OnExitDestroy}
	case api.MakerHTTP:
	}
	return d
}
