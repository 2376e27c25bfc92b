package agenttest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// Tokens that a new Daemon knows.
const (
	Alice    localapi.Secret = "token-of-alice-7f3a"    // read and run
	Bob      localapi.Secret = "token-of-bob-91c2"      // read and run, another tenant
	Reader   localapi.Secret = "token-of-reader-55d0"   // read, alice's tenant
	Admin    localapi.Secret = "token-of-admin-c0de"    // everything
	Internal                 = "sekrit-of-the-database" // part of an internal error's cause
)

// Daemon is the double. Its exported fields are set before it is used; methods
// are safe for concurrent use.
type Daemon struct {
	path string
	work string // the working directory of commands and file operations
	ca   ssh.Signer

	mu        sync.Mutex // guards all below
	callers   map[string]sandbox.Caller
	sandboxes map[sandbox.ID]*sandbox.Sandbox
	order     []sandbox.ID
	remember  map[string][2]string // tenant/key: request digest, id
	requests  []localapi.Request
	failures  map[localapi.Op]error
	notGone   bool // OpDestroy leaves sandboxes draining
	problems  []string
	peers     chan peer
	open      map[net.Conn]bool
	closed    bool
	serial    uint64
	wg        sync.WaitGroup
}

type peer struct {
	handle string
	conn   *os.File
}

// Start starts a Daemon that ends with the test.
func Start(t testing.TB) *Daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "agenttest") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	scopes := []sandbox.Scope{sandbox.ScopeRead, sandbox.ScopeRun}
	d := &Daemon{
		path: filepath.Join(dir, "daemon.sock"), work: t.TempDir(), ca: ca,
		callers: map[string]sandbox.Caller{
			Alice.Reveal():  {Tenant: "alice", Subject: "alice", Scopes: scopes},
			Bob.Reveal():    {Tenant: "bob", Subject: "bob", Scopes: scopes},
			Reader.Reveal(): {Tenant: "alice", Subject: "reader", Scopes: scopes[:1]},
			Admin.Reveal():  {Tenant: "admin", Subject: "admin", Scopes: append(scopes, sandbox.ScopeAdmin)},
		},
		sandboxes: map[sandbox.ID]*sandbox.Sandbox{}, remember: map[string][2]string{},
		failures: map[localapi.Op]error{}, peers: make(chan peer), open: map[net.Conn]bool{},
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	d.wg.Go(func() { d.accept(l) })
	t.Cleanup(func() {
		_ = l.Close()
		d.mu.Lock()
		d.closed = true
		for c := range d.open {
			_ = c.Close()
		}
		d.mu.Unlock()
		d.wg.Wait()
		_ = os.RemoveAll(dir)
	})
	return d
}

// Work is the folder that stands for every sandbox's workspace.
func (d *Daemon) Work() string { return d.work }

// Client returns a client of the Daemon.
func (d *Daemon) Client() *localapi.Client {
	return &localapi.Client{Path: d.path, ServerUID: os.Getuid()}
}

// Fail makes op fail with err from now on; nil ends that. An error that is no
// *sandbox.Error is internal, as in the real daemon.
func (d *Daemon) Fail(op localapi.Op, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failures[op] = err
}

// DestroySlowly makes OpDestroy answer before the sandbox is gone.
func (d *Daemon) DestroySlowly() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.notGone = true
}

// NotReady sets the problems that OpReady names.
func (d *Daemon) NotReady(problems ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.problems = problems
}

// Revoke makes a token unknown.
func (d *Daemon) Revoke(token localapi.Secret) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.callers, token.Reveal())
}

// Requests returns what was asked with op.
func (d *Daemon) Requests(op localapi.Op) []localapi.Request {
	d.mu.Lock()
	defer d.mu.Unlock()
	var got []localapi.Request
	for _, r := range d.requests {
		if r.Op == op {
			got = append(got, r)
		}
	}
	return got
}

// Connect plays a caller that connects to podspawn.sock with the credentials of
// tenant, and returns the caller's end. It blocks until OpAccept is called.
func (d *Daemon) Connect(t testing.TB, tenant string) net.Conn {
	t.Helper()
	ours, theirs := socketpair(t)
	handle := sandbox.NewToken("peer_")
	d.mu.Lock()
	d.callers[handle] = sandbox.Caller{Tenant: tenant, Subject: tenant, Scopes: []sandbox.Scope{sandbox.ScopeRead, sandbox.ScopeRun}}
	d.mu.Unlock()
	conn, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	select {
	case d.peers <- peer{handle, theirs}:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody accepts on podspawn.sock")
	}
	return conn
}

func (d *Daemon) accept(l *net.UnixListener) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		d.mu.Lock()
		if d.closed {
			_ = conn.Close()
		}
		d.open[conn] = true
		d.mu.Unlock()
		d.wg.Go(func() {
			d.serve(conn)
			d.mu.Lock()
			delete(d.open, conn)
			d.mu.Unlock()
			_ = conn.Close()
		})
	}
}

func (d *Daemon) serve(conn *net.UnixConn) {
	var req localapi.Request
	if err := localapi.ReadFrame(conn, &req); err != nil {
		return
	}
	d.mu.Lock()
	d.requests = append(d.requests, req)
	d.mu.Unlock()
	if req.Op == localapi.OpAccept {
		d.serveAccept(conn)
		return
	}
	body, file, hold, err := d.answer(req)
	resp := localapi.Response{V: localapi.Version}
	if err != nil {
		e := sandbox.Public(err)
		resp.Error = &localapi.Error{Kind: e.Kind, Msg: e.Msg, Hint: e.Hint}
	} else if resp.Body, err = json.Marshal(body); err != nil {
		panic(err)
	}
	_ = localapi.WriteFrame(conn, resp, file)
	if file != nil {
		_ = file.Close()
	}
	if hold != nil {
		var b [1]byte
		_, _ = conn.Read(b[:]) // until the lease ends
		hold()
	}
}

func (d *Daemon) serveAccept(conn *net.UnixConn) {
	gone := make(chan struct{})
	go func() {
		var b [1]byte
		_, _ = conn.Read(b[:])
		close(gone)
	}()
	select {
	case <-gone:
	case p := <-d.peers:
		b, err := json.Marshal(localapi.AcceptResponse{Peer: p.handle, UID: 1000})
		if err != nil {
			panic(err)
		}
		_ = localapi.WriteFrame(conn, localapi.Response{V: localapi.Version, Body: b}, p.conn)
		_ = p.conn.Close()
		<-gone
		d.mu.Lock()
		delete(d.callers, p.handle)
		d.mu.Unlock()
	}
}

// answer carries out one request; hold is called when its lease ends.
func (d *Daemon) answer(req localapi.Request) (body any, file *os.File, hold func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.failures[req.Op]; err != nil {
		return nil, nil, nil, err
	}
	switch req.Op {
	case localapi.OpReady:
		return localapi.ReadyResponse{Problems: d.problems}, nil, nil, nil
	case localapi.OpKeys:
		return localapi.KeysResponse{Issuer: "podspawn:test", Audience: "podspawn"}, nil, nil, nil
	}
	who, ok := d.callers[req.Auth.Bearer.Reveal()+req.Auth.Peer]
	if !ok || (req.Auth.Bearer != "") == (req.Auth.Peer != "") {
		return nil, nil, nil, sandbox.Errorf(sandbox.KindUnauthorized, "make a new token", "the token is revoked or unknown")
	}
	if need := scopeOf(req.Op); need != "" && !who.Can(need) {
		return nil, nil, nil, sandbox.Errorf(sandbox.KindInsufficientScope, "ask for one with "+string(need), "the token does not have %s", need)
	}
	if req.Op == localapi.OpExec {
		return d.exec(who, req.Body)
	}
	body, err = d.simple(who, req)
	return body, nil, nil, err
}

func scopeOf(op localapi.Op) sandbox.Scope {
	switch op {
	case localapi.OpCreate, localapi.OpExtend, localapi.OpDestroy, localapi.OpExec, localapi.OpIssue:
		return sandbox.ScopeRun
	case localapi.OpGet, localapi.OpList, localapi.OpValidate:
		return sandbox.ScopeRead
	case localapi.OpToken:
		return sandbox.ScopeAdmin
	default:
		return ""
	}
}

// simple answers what needs no descriptor. d.mu is held.
func (d *Daemon) simple(who sandbox.Caller, req localapi.Request) (any, error) {
	switch req.Op {
	case localapi.OpWhoAmI:
		return localapi.WhoAmIResponse{Caller: who}, nil
	case localapi.OpCreate:
		return d.create(who, req.Body)
	case localapi.OpGet:
		in, err := decode[localapi.SandboxRef](req.Body)
		if err != nil {
			return nil, err
		}
		s, err := d.find(who, in.Sandbox)
		if err != nil {
			return nil, err
		}
		return localapi.SandboxResponse{Sandbox: *s}, nil
	case localapi.OpValidate:
		in, err := decode[localapi.CreateRequest](req.Body)
		if err != nil {
			return nil, err
		}
		out := localapi.ValidateResponse{Digest: in.Spec.Digest(), TTL: in.Spec.Lifecycle.TTL, MaxSandboxes: 5, MaxTTL: 4 * time.Hour}
		if in.Spec.Lifecycle.TTL > out.MaxTTL {
			out.Denied = []localapi.Error{{Kind: sandbox.KindPolicy, Msg: "a ttl so long is not allowed", Hint: "ask for at most 4h"}}
		}
		return out, nil
	case localapi.OpList:
		return d.list(who, req.Body)
	case localapi.OpExtend:
		in, err := decode[localapi.ExtendRequest](req.Body)
		if err != nil {
			return nil, err
		}
		s, err := d.living(who, in.Sandbox)
		if err != nil {
			return nil, err
		}
		if end := time.Now().Add(in.TTL); end.After(s.ExpiresAt) {
			s.ExpiresAt = end
		}
		return localapi.SandboxResponse{Sandbox: *s}, nil
	case localapi.OpDestroy:
		in, err := decode[localapi.DestroyRequest](req.Body)
		if err != nil {
			return nil, err
		}
		s, err := d.find(who, in.Sandbox)
		if err != nil {
			return nil, err
		}
		s.State, s.Reason = sandbox.StateDestroyed, sandbox.ReasonRequested
		if d.notGone {
			s.State = sandbox.StateDraining
		} else {
			s.EndedAt = time.Now()
		}
		return localapi.SandboxResponse{Sandbox: *s}, nil
	case localapi.OpIssue:
		return d.issue(who, req.Body)
	case localapi.OpCA:
		return localapi.CAResponse{UserCA: d.line(), Host: d.host()}, nil
	case localapi.OpToken:
		return localapi.TokenResponse{Token: "made-token", ID: sandbox.NewToken("tok_"), ExpiresAt: time.Now().Add(time.Hour)}, nil
	}
	return nil, fmt.Errorf("unknown operation %s", req.Op)
}

func (d *Daemon) create(who sandbox.Caller, body json.RawMessage) (any, error) {
	in, err := decode[localapi.CreateRequest](body)
	if err != nil {
		return nil, err
	}
	if err := in.Spec.Validate(); err != nil {
		return nil, err
	}
	if in.Spec.Image == "no/such" {
		return nil, sandbox.Errorf(sandbox.KindImageNotFound, "podspawn image list shows the images", "no image %q", in.Spec.Image)
	}
	key := who.Tenant + "/" + in.IdempotencyKey
	if in.IdempotencyKey != "" {
		if had, ok := d.remember[key]; ok {
			if had[0] != in.RequestDigest {
				return nil, sandbox.Errorf(sandbox.KindIdempotencyMismatch, "use another key", "the key was used for another request")
			}
			return localapi.SandboxResponse{Sandbox: *d.sandboxes[sandbox.ID(had[1])]}, nil
		}
	}
	if in.Name != "" {
		if _, err := d.living(who, in.Name); err == nil {
			return nil, sandbox.Errorf(sandbox.KindConflict, "use another name", "a sandbox is called %q already", in.Name)
		}
	}
	now := time.Now()
	s := &sandbox.Sandbox{
		ID: sandbox.NewID(), Tenant: who.Tenant, Subject: who.Subject, Name: in.Name, Labels: in.Labels,
		Spec: in.Spec, Digest: in.Spec.Digest(), State: sandbox.StateReady, UID: sandbox.MinUID,
		CreatedAt: now, ReadyAt: now, ExpiresAt: now.Add(in.Spec.Lifecycle.TTL),
	}
	d.sandboxes[s.ID] = s
	d.order = append(d.order, s.ID)
	d.remember[key] = [2]string{in.RequestDigest, string(s.ID)}
	return localapi.SandboxResponse{Sandbox: *s}, nil
}

func (d *Daemon) list(who sandbox.Caller, body json.RawMessage) (any, error) {
	in, err := decode[localapi.ListRequest](body)
	if err != nil {
		return nil, err
	}
	var out localapi.ListResponse
	past := in.Before == ""
	for i := len(d.order) - 1; i >= 0 && len(out.Sandboxes) < in.Limit; i-- {
		s := d.sandboxes[d.order[i]]
		if past && s.Tenant == who.Tenant && (in.Final || !s.State.Final()) && hasLabels(s, in.Labels) {
			out.Sandboxes = append(out.Sandboxes, localapi.SandboxResponse{Sandbox: *s})
		}
		past = past || s.ID == in.Before
	}
	return out, nil
}

func hasLabels(s *sandbox.Sandbox, want map[string]string) bool {
	for k, v := range want {
		if s.Labels[k] != v {
			return false
		}
	}
	return true
}

func (d *Daemon) issue(who sandbox.Caller, body json.RawMessage) (any, error) {
	in, err := decode[localapi.IssueRequest](body)
	if err != nil {
		return nil, err
	}
	s, err := d.living(who, in.Sandbox)
	if err != nil {
		return nil, err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(in.PublicKey))
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	d.serial++
	until := time.Now().Add(5 * time.Minute)
	cert := &ssh.Certificate{
		Key: key, CertType: ssh.UserCert, Serial: d.serial, ValidPrincipals: []string{s.ID.Login()},
		ValidBefore: uint64(until.Unix()),
	}
	if err := cert.SignCert(rand.Reader, d.ca); err != nil {
		return nil, err
	}
	return localapi.IssueResponse{
		Sandbox: *s, Certificate: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(cert))),
		Serial: d.serial, ValidBefore: until, Host: d.host(),
	}, nil
}

func (d *Daemon) line() string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(d.ca.PublicKey())))
}

func (d *Daemon) host() localapi.HostInfo {
	return localapi.HostInfo{Host: "127.0.0.1", Port: 22, KnownHosts: "@cert-authority 127.0.0.1 " + d.line()}
}

// find returns the caller's sandbox of that id or name; others' do not exist.
func (d *Daemon) find(who sandbox.Caller, ref string) (*sandbox.Sandbox, error) {
	for _, s := range d.sandboxes {
		if s.Tenant == who.Tenant && (string(s.ID) == ref || (s.Name == ref && !s.State.Final())) {
			return s, nil
		}
	}
	return nil, sandbox.Errorf(sandbox.KindNotFound, "list your sandboxes", "no sandbox %q", ref)
}

func (d *Daemon) living(who sandbox.Caller, ref string) (*sandbox.Sandbox, error) {
	s, err := d.find(who, ref)
	if err == nil && !s.State.Usable() {
		return nil, sandbox.Errorf(sandbox.KindGone, "make another one", "sandbox %s is %s", s.ID, s.State)
	}
	return s, err
}

func decode[T any](body json.RawMessage) (T, error) {
	var v T
	if err := json.Unmarshal(body, &v); err != nil {
		return v, fmt.Errorf("decode request: %w", err)
	}
	return v, nil
}
