package agent

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// How long the daemon may take. The caller's context may end earlier.
const (
	callTimeout   = 15 * time.Second
	createTimeout = 2 * time.Minute
	destroyWait   = 10 * time.Second
)

// Config is what a Service needs.
type Config struct {
	Daemon *localapi.Client
	// Defaults complete a spec. The zero value means sandbox.BuiltinDefaults. Their
	// Lifecycle is that of MakerHTTP; the other makers have the contract's.
	Defaults sandbox.Defaults
	Log      *slog.Logger // nil discards
}

// Service is the use cases of the API. It is safe for concurrent use.
type Service struct {
	daemon   *localapi.Client
	defaults sandbox.Defaults
	log      *slog.Logger
	jobs     *jobs
}

// New returns a Service.
func New(c Config) (*Service, error) {
	if c.Daemon == nil {
		return nil, errors.New("agent: no daemon")
	}
	s := &Service{daemon: c.Daemon, defaults: c.Defaults, log: c.Log}
	s.jobs = newJobs()
	if s.defaults == (sandbox.Defaults{}) {
		s.defaults = sandbox.BuiltinDefaults()
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s, nil
}

// Close kills the commands that outlived their calls and waits for their ends. No
// other method may be called afterwards.
func (s *Service) Close() { s.jobs.close() }

// As returns the API as the caller with this credential sees it. It asks nobody:
// a bad credential is an error of the first call.
func (s *Service) As(auth localapi.Auth) api.API { return &as{s: s, auth: auth} }

// WhoAmI asks the daemon who the caller is: it fails for a credential that was
// revoked, which the token alone does not tell.
func (s *Service) WhoAmI(ctx context.Context, auth localapi.Auth) (sandbox.Caller, error) {
	var out localapi.WhoAmIResponse
	err := (&as{s: s, auth: auth}).call(ctx, localapi.OpWhoAmI, struct{}{}, &out)
	return out.Caller, err
}

// Ready lists what keeps sandboxes from being made; empty is ready.
func (s *Service) Ready(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var out localapi.ReadyResponse
	err := s.daemon.Call(ctx, localapi.OpReady, localapi.Auth{}, struct{}{}, &out)
	return out.Problems, err
}

// Keys returns what API tokens are verified with.
func (s *Service) Keys(ctx context.Context) (localapi.KeysResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var out localapi.KeysResponse
	err := s.daemon.Call(ctx, localapi.OpKeys, localapi.Auth{}, struct{}{}, &out)
	return out, err
}

// as is the API of one caller.
type as struct {
	s    *Service
	auth localapi.Auth
}

var _ api.API = (*as)(nil)

func (a *as) call(ctx context.Context, op localapi.Op, in, out any) error {
	return a.callFor(ctx, callTimeout, op, in, out)
}

func (a *as) callFor(ctx context.Context, d time.Duration, op localapi.Op, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return a.s.daemon.Call(ctx, op, a.auth, in, out)
}

func (a *as) Get(ctx context.Context, ref string) (api.Sandbox, error) {
	if err := checkRef(ref); err != nil {
		return api.Sandbox{}, err
	}
	var out localapi.SandboxResponse
	if err := a.call(ctx, localapi.OpGet, localapi.SandboxRef{Sandbox: ref}, &out); err != nil {
		return api.Sandbox{}, err
	}
	return view(out), nil
}

func (a *as) List(ctx context.Context, r api.ListRequest) (api.List, error) {
	const most = 100
	if r.Limit < 0 || r.Limit > most {
		return api.List{}, sandbox.Errorf(sandbox.KindInvalidSpec, "use 1 to 100", "limit %d is out of range", r.Limit)
	}
	if r.Limit == 0 {
		r.Limit = most
	}
	if err := sandbox.ValidateLabels(r.Labels); err != nil {
		return api.List{}, err
	}
	in := localapi.ListRequest{Labels: r.Labels, Final: r.Final, Limit: r.Limit, AllTenants: r.AllTenants}
	if r.Cursor != "" {
		id, err := sandbox.ParseID(r.Cursor)
		if err != nil {
			return api.List{}, sandbox.Errorf(sandbox.KindInvalidSpec, "use next_cursor of an earlier answer", "that is no cursor")
		}
		in.Before = id
	}
	var out localapi.ListResponse
	if err := a.call(ctx, localapi.OpList, in, &out); err != nil {
		return api.List{}, err
	}
	l := api.List{Sandboxes: make([]api.Sandbox, 0, len(out.Sandboxes))}
	for _, s := range out.Sandboxes {
		v := view(s)
		if r.AllTenants {
			v.Tenant = s.Sandbox.Tenant
		}
		l.Sandboxes = append(l.Sandboxes, v)
	}
	if n := len(l.Sandboxes); n > 0 && n >= r.Limit {
		l.Next = string(l.Sandboxes[n-1].ID)
	}
	return l, nil
}

func (a *as) Extend(ctx context.Context, ref string, ttl time.Duration) (api.Sandbox, error) {
	if err := checkRef(ref); err != nil {
		return api.Sandbox{}, err
	}
	if ttl <= 0 {
		return api.Sandbox{}, sandbox.Errorf(sandbox.KindInvalidSpec, "say how long from now, such as 30m", "ttl is missing or zero")
	}
	var out localapi.SandboxResponse
	if err := a.call(ctx, localapi.OpExtend, localapi.ExtendRequest{Sandbox: ref, TTL: ttl}, &out); err != nil {
		return api.Sandbox{}, err
	}
	return view(out), nil
}

func (a *as) Destroy(ctx context.Context, ref string) (api.Sandbox, error) {
	if err := checkRef(ref); err != nil {
		return api.Sandbox{}, err
	}
	var out localapi.SandboxResponse
	err := a.callFor(ctx, destroyWait+callTimeout, localapi.OpDestroy,
		localapi.DestroyRequest{Sandbox: ref, Wait: destroyWait}, &out)
	if err != nil {
		return api.Sandbox{}, err
	}
	return view(out), nil
}

func (a *as) CA(ctx context.Context) (api.CA, error) {
	var out localapi.CAResponse
	if err := a.call(ctx, localapi.OpCA, struct{}{}, &out); err != nil {
		return api.CA{}, err
	}
	return ca(out), nil
}

func (a *as) CreateToken(ctx context.Context, r api.TokenRequest) (api.Token, error) {
	for _, s := range r.Scopes {
		switch s {
		case sandbox.ScopeRead, sandbox.ScopeRun, sandbox.ScopeAdmin:
		default:
			return api.Token{}, sandbox.Errorf(sandbox.KindInvalidSpec,
				"use sandbox:read, sandbox:run or sandbox:admin", "scopes: %q is no scope", clip(string(s)))
		}
	}
	if r.MaxSandboxes < 0 {
		return api.Token{}, sandbox.Errorf(sandbox.KindInvalidSpec, "leave it out for the configured limit", "max_sandboxes is negative")
	}
	in := localapi.TokenRequest{
		Tenant: r.Tenant, Subject: r.Subject, Scopes: r.Scopes, TTL: time.Duration(r.TTL),
		Caps: sandbox.Caps{MaxSandboxes: r.MaxSandboxes, MaxTTL: time.Duration(r.MaxTTL)},
	}
	var out localapi.TokenResponse
	if err := a.call(ctx, localapi.OpToken, in, &out); err != nil {
		return api.Token{}, err
	}
	return api.Token{Token: out.Token.Reveal(), ID: out.ID, ExpiresAt: out.ExpiresAt}, nil
}

// checkRef refuses what can't be an id or a name, without a call.
func checkRef(ref string) error {
	if _, err := sandbox.ParseID(ref); err == nil {
		return nil
	}
	if sandbox.ValidateName(ref) == nil {
		return nil
	}
	return sandbox.Errorf(sandbox.KindNotFound, "list your sandboxes to see their ids and names", "no sandbox %q", clip(ref))
}

func clip(s string) string {
	const most = 60
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
