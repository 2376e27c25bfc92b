package daemon

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// send writes one request and returns the answer, or the zero one when the
// daemon closes without one.
func send(t *testing.T, conn *net.UnixConn, frame []byte) localapi.Response {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write(frame) // the daemon may close before it has all of it
	var r localapi.Response
	if err := localapi.ReadFrame(conn, &r); err != nil && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Fatalf("answer: %v", err)
	}
	return r
}

func frame(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

func TestEachPeerHasItsOwnOperations(t *testing.T) {
	needRoot(t)
	w := open(t)
	row := w.ready()
	ops := map[localapi.Op]int{ // and the one uid that may use it
		localapi.OpPrincipals: authUID, localapi.OpPAMOpen: 0, localapi.OpPAMClose: 0, localapi.OpSession: row.UID,
		localapi.OpAccept: apiUID, localapi.OpKeys: apiUID, localapi.OpReady: apiUID, localapi.OpCA: apiUID, localapi.OpWhoAmI: apiUID,
		localapi.OpCreate: apiUID, localapi.OpValidate: apiUID, localapi.OpGet: apiUID, localapi.OpList: apiUID, localapi.OpExtend: apiUID, localapi.OpDestroy: apiUID,
		localapi.OpExec: apiUID, localapi.OpIssue: apiUID, localapi.OpToken: apiUID, "no.such": apiUID, "": apiUID,
	}
	for _, uid := range []int{0, authUID, apiUID, row.UID, sandbox.MinUID - 1, sandbox.MaxUID + 1, 1000} {
		for op, may := range ops {
			if uid == may {
				continue
			}
			r := send(t, w.dial(DaemonSocket, uid), frame(t, localapi.Request{V: localapi.Version, Op: op, Body: json.RawMessage(`{}`)}))
			if r.Error == nil || r.Error.Kind != sandbox.KindUnauthorized || r.Body != nil {
				t.Errorf("%s by uid %d: %+v, want unauthorized", op, uid, r)
			}
		}
	}
}

func TestRequestsOutsideTheProtocol(t *testing.T) {
	t.Parallel()
	w := open(t)
	for _, c := range []struct {
		name  string
		frame []byte
		kind  sandbox.Kind
	}{
		{"another version", frame(t, localapi.Request{V: localapi.Version + 1, Op: localapi.OpKeys}), sandbox.KindUnavailable},
		{"unknown operation", frame(t, localapi.Request{V: localapi.Version, Op: "api.rm", Auth: localapi.Auth{Bearer: localapi.Secret(w.token("t1"))}}), sandbox.KindInternal},
		{"unknown field", frame(t, localapi.Request{
			V: localapi.Version, Op: localapi.OpGet, Auth: localapi.Auth{Bearer: localapi.Secret(w.token("t1"))}, Body: json.RawMessage(`{"sandbox":"x","tenant":"t2"}`),
		}), sandbox.KindInternal},
		{"no JSON", append([]byte{0, 0, 0, 3}, "{{{"...), sandbox.KindInternal},
		{"nesting without end", frame(t, json.RawMessage(strings.Repeat("[", 5000)+strings.Repeat("]", 5000))), sandbox.KindInternal},
		{"longer than any frame", []byte{0xff, 0xff, 0xff, 0xff}, sandbox.KindInternal},
		{"one byte too long", binary.BigEndian.AppendUint32(nil, localapi.MaxFrame+1), sandbox.KindInternal},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := send(t, w.dial(DaemonSocket, apiUID), c.frame)
			if r.Error == nil || r.Error.Kind != c.kind || r.Error.Hint == "" {
				t.Errorf("answer = %+v, want %s with a hint", r, c.kind)
			}
		})
	}
	t.Run("half a frame", func(t *testing.T) {
		conn := w.dial(DaemonSocket, apiUID)
		if _, err := conn.Write([]byte{0, 0, 1, 0, '{'}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if r := send(t, conn, nil); r.Error == nil {
			t.Errorf("answer = %+v, want an error", r)
		}
		if took := time.Since(began); took > requestTimeout+3*time.Second {
			t.Errorf("half a frame was waited for for %s", took)
		}
	})
}

func TestPanicInAHandlerIsAnError(t *testing.T) {
	w := open(t, func(c *Config) { c.Tokens = nil })
	for range 3 {
		_, err := w.asAPI(localapi.OpKeys, localapi.Auth{}, struct{}{}, nil)
		if sandbox.KindOf(err) != sandbox.KindInternal || strings.Contains(fmt.Sprint(err), "nil pointer") {
			t.Errorf("keys = %v, want an internal error without its cause", err)
		}
	}
}

// A local user who floods the socket takes nobody else's place.
func TestFloodOfStrangers(t *testing.T) {
	needRoot(t)
	w := open(t)
	var conns []*net.UnixConn
	for range 3 * class(strangers).limit() {
		conn := w.dial(DaemonSocket, 1000)
		_, _ = conn.Write([]byte{0, 0}) // half a frame; refused already, perhaps
		conns = append(conns, conn)
	}
	began := time.Now()
	if _, err := w.asAPI(localapi.OpKeys, localapi.Auth{}, struct{}{}, nil); err != nil {
		t.Errorf("keys during the flood: %v", err)
	}
	r := send(t, w.dial(DaemonSocket, authUID), frame(t, localapi.Request{V: localapi.Version, Op: localapi.OpPrincipals, Body: json.RawMessage(`{}`)}))
	if r.Error == nil || r.Error.Kind != sandbox.KindPolicy && r.Error.Kind != sandbox.KindNotFound {
		t.Errorf("principals during the flood: %+v, want a decision", r)
	}
	if took := time.Since(began); took > requestTimeout {
		t.Errorf("took %s", took)
	}
	open := 0
	for _, c := range conns {
		if err := c.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		if _, err := c.Read(b[:]); errors.Is(err, os.ErrDeadlineExceeded) {
			open++
		}
	}
	if open > class(strangers).limit() {
		t.Errorf("%d of %d strangers are connected, want at most %d", open, len(conns), class(strangers).limit())
	}
}

func TestAdmissionKeepsAPlaceForEachClass(t *testing.T) {
	var a admission
	fill := func(uid, most int) (got int) {
		for got <= most {
			if _, ok := a.admit(uid, authUID, apiUID); !ok {
				return got
			}
			got++
		}
		return got
	}
	for _, c := range []struct {
		name      string
		uid, want int
	}{
		{"a stranger", 1000, strangers.limit()},
		{"another stranger", 1001, 0},
		{"one sandbox", sandbox.MinUID, maxOfSandbox},
		{"another sandbox", sandbox.MaxUID, maxOfSandbox},
		{"the API", apiUID, apiProcess.limit()},
		{"the auth hook", authUID, authHooks.limit()},
		{"root", 0, rootHooks.limit()},
	} {
		if got := fill(c.uid, 10_000); got != c.want {
			t.Errorf("%s gets %d connections, want %d", c.name, got, c.want)
		}
	}
	sum := 0
	for uid := sandbox.MinUID + 1; uid < sandbox.MaxUID; uid++ {
		got := fill(uid, 10_000)
		if sum += got; got == 0 {
			break
		}
	}
	if want := sandboxHooks.limit() - 2*maxOfSandbox; sum != want {
		t.Errorf("all other sandboxes get %d connections, want %d", sum, want)
	}
}

func TestThousandCallsAtOnce(t *testing.T) {
	w := open(t)
	row := w.ready()
	tokens := []string{w.token("t1"), w.token("t2"), w.token("t3"), w.token("t4")}
	conns := make([]*net.UnixConn, 1000)
	asUID(t, apiUID, func() {
		for i := range conns {
			var err error
			if conns[i], err = net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(w.dir, DaemonSocket), Net: "unix"}); err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { _ = conns[i].Close() }) // the test is over
		}
	})
	if t.Failed() {
		return
	}
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			// Of several tenants, since one alone may not have so many.
			body := json.RawMessage(fmt.Sprintf(`{"v":1,"op":"api.get","auth":{"bearer":%q},"body":{"sandbox":%q}}`, tokens[i%len(tokens)], row.ID))
			if _, err := c.Write(frame(t, body)); err != nil {
				t.Errorf("call %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	for i, c := range conns {
		r := send(t, c, nil)
		if r.Error != nil && r.Error.Kind != sandbox.KindNotFound || r.Error == nil && !strings.Contains(string(r.Body), string(row.ID)) {
			t.Fatalf("call %d: %+v", i, r)
		}
		_ = c.Close() // it has its answer
	}
	eventually(t, func() error { return w.nothingHeld() })
}

// nothingHeld returns an error while anything is counted.
func (w *world) nothingHeld() error {
	w.doors.classes.mu.Lock()
	defer w.doors.classes.mu.Unlock()
	w.tenants.mu.Lock()
	defer w.tenants.mu.Unlock()
	w.Sessions.mu.Lock()
	defer w.Sessions.mu.Unlock()
	w.running.mu.Lock()
	defer w.running.mu.Unlock()
	if n := len(w.doors.classes.n) + len(w.tenants.n) + len(w.Sessions.channels) + len(w.running.n); n > 0 {
		return fmt.Errorf("held: peers %v, calls %v, channels %v, commands %v", w.doors.classes.n, w.tenants.n, w.Sessions.channels, w.running.n)
	}
	return nil
}

func TestCommandIsHeldByItsLease(t *testing.T) {
	w := open(t)
	row := w.ready()
	auth := localapi.Auth{Bearer: localapi.Secret(w.token("t1"))}
	in := localapi.ExecRequest{Sandbox: string(row.ID), Command: "make"}
	var leases []*localapi.Lease
	for i := range maxCommands {
		lease, err := w.asAPI(localapi.OpExec, auth, in, nil)
		if err != nil || lease.File == nil {
			t.Fatalf("command %d: %v", i, err)
		}
		_ = lease.File.Close() // the guest is not asked for anything
		leases = append(leases, lease)
	}
	if _, err := w.asAPI(localapi.OpExec, auth, in, nil); sandbox.KindOf(err) != sandbox.KindQuota {
		t.Errorf("one command more = %v, want quota_exceeded", err)
	}
	if _, err := w.asAPI(localapi.OpExec, localapi.Auth{Bearer: localapi.Secret(w.token("t2"))}, in, nil); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("another tenant's command = %v, want not_found", err)
	}
	for _, l := range leases {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	eventually(t, func() error {
		evs, err := w.store.Events(t.Context(), 0, 1000)
		ended := 0
		for _, ev := range evs {
			if ev.Event == sandbox.EventCommandFinished {
				ended++
			}
		}
		if ended != maxCommands {
			return errors.Join(err, fmt.Errorf("%d commands ended, want %d", ended, maxCommands))
		}
		return w.nothingHeld()
	})
}

// A caller that goes before its answer comes leaves nothing behind.
func TestAnswerThatNobodyTakes(t *testing.T) {
	t.Parallel()
	w := open(t)
	row := w.ready()
	w.guests.silent = row.ID // so that the caller is gone when the answer comes
	auth := localapi.Auth{Bearer: localapi.Secret(w.token("t1"))}
	for range 4 {
		conn := w.dial(DaemonSocket, apiUID)
		body, err := localapi.Encode(localapi.ExecRequest{Sandbox: string(row.ID)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(frame(t, map[string]any{"v": localapi.Version, "op": localapi.OpExec, "auth": map[string]string{"bearer": auth.Bearer.Reveal()}, "body": body})); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			w.running.mu.Lock()
			defer w.running.mu.Unlock()
			if w.running.n[row.ID] == 0 {
				return errors.New("the command is not being started")
			}
			return nil
		})
		_ = conn.Close() // that is the test
	}
	eventually(t, func() error { return w.nothingHeld() })
}

// A guest that answers nobody costs 2 s and a few threads, however many ask.
func TestSilentGuest(t *testing.T) {
	t.Parallel()
	w := open(t)
	row, other := w.ready(), w.ready()
	w.guests.silent = row.ID
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if f, err := w.Guests.Open(t.Context(), row, "x"); sandbox.KindOf(err) != sandbox.KindUnavailable {
				t.Errorf("Open = %v, %v, want unavailable", f, err)
			}
		})
	}
	eventually(t, func() error {
		w.Guests.mu.Lock()
		defer w.Guests.mu.Unlock()
		if g := w.Guests.gates[row.ID]; g == nil || len(g.slots) < maxUnanswered || g.users != 40 {
			return fmt.Errorf("gate = %+v, want %d of 40 through", g, maxUnanswered)
		}
		return nil
	})
	f, err := w.Guests.Open(t.Context(), other, "x")
	if err != nil {
		t.Errorf("another sandbox meanwhile: %v", err)
	} else if err := f.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if len(w.Guests.gates) != 0 {
		t.Errorf("%d gates are left", len(w.Guests.gates))
	}
}
