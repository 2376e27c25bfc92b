package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

// Harness is an implementation under test.
type Harness struct {
	Runtime sandbox.Runtime
	// Image is a reference to a small image with sh and the usual commands in /bin.
	Image string
	// GuestTarget and SocketTarget are where the guest and its socket directory
	// appear inside.
	GuestTarget, SocketTarget string
	// Exec runs a command as root in a running sandbox and returns what it wrote to
	// both of its outputs, and its exit code. It is a back door of the test's, not the runtime's.
	Exec func(ctx context.Context, id sandbox.ID, argv ...string) (out string, code int, err error)
	// Networks says that sandboxes can have networks here.
	Networks bool
	// Left lists whatever exists of sandboxes, in any form that the engine keeps.
	Left func(ctx context.Context) ([]string, error)
}

// stepTimeout bounds every wait; it is far above what any step takes.
const stepTimeout = 60 * time.Second

// Run runs the suite. open is called once, and what it opened is shared by all
// parts: each uses sandboxes of its own.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	h := open(t)
	for _, part := range []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"Check", testCheck},
		{"Image", testImage},
		{"Lifetime", testLifetime},
		{"StartConflict", testConflict},
		{"StartRefused", testRefused},
		{"StartCanceledLeavesNothing", testStartCanceled},
		{"StartParallel", testParallel},
		{"DestroyIdempotent", testDestroyIdempotent},
		{"DestroyCanceledGoesOn", testDestroyCanceled},
		{"Watch", testWatch},
		{"Network", testNetwork},
		{"Hardening", testHardening},
		{"Limits", testLimits},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, h) })
	}
	left, err := h.Left(t.Context())
	if err != nil {
		t.Fatalf("look for what is left: %v", err)
	}
	if len(left) > 0 {
		t.Errorf("left after all sandboxes are destroyed: %q", left)
	}
}

func params(t *testing.T, h Harness) sandbox.StartParams {
	t.Helper()
	img, err := h.Runtime.Image(t.Context(), h.Image)
	if err != nil {
		t.Fatalf("Image(%q): %v", h.Image, err)
	}
	return sandbox.StartParams{
		Sandbox: sandbox.NewID(), ImageID: img.ID, SocketDir: t.TempDir(),
		Resources: sandbox.Resources{CPUs: 1, Memory: 256 << 20, Disk: 1 << 30, PIDs: 256},
		Egress:    sandbox.EgressNone, Deadline: time.Now().Add(time.Hour).Unix(),
	}
}

// start starts a sandbox that is destroyed when the test ends.
func start(t *testing.T, h Harness, p sandbox.StartParams) sandbox.Container {
	t.Helper()
	destroyAfter(t, h, p.Sandbox)
	c, err := h.Runtime.Start(t.Context(), p)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	return c
}

func destroyAfter(t *testing.T, h Harness, id sandbox.ID) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
		defer cancel()
		if err := h.Runtime.Destroy(ctx, id); err != nil {
			t.Errorf("Destroy(%s): %v", id, err)
		}
	})
}

// find returns what List says of one sandbox.
func find(t *testing.T, h Harness, id sandbox.ID) (sandbox.Container, bool) {
	t.Helper()
	cs, err := h.Runtime.List(t.Context())
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	i := slices.IndexFunc(cs, func(c sandbox.Container) bool { return c.Sandbox == id })
	if i < 0 {
		return sandbox.Container{}, false
	}
	return cs[i], true
}

// eventually polls until ok or stepTimeout.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(stepTimeout); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", stepTimeout, what)
		}
	}
}

func wantKind(t *testing.T, what string, err error, want sandbox.Kind) {
	t.Helper()
	if err == nil || sandbox.KindOf(err) != want {
		t.Errorf("%s = %v (kind %q), want kind %q", what, err, sandbox.KindOf(err), want)
		return
	}
	if sandbox.Public(err).Hint == "" {
		t.Errorf("%s = %v, and it has no hint", what, err)
	}
}

func testCheck(t *testing.T, h Harness) {
	if err := h.Runtime.Check(t.Context()); err != nil {
		t.Errorf("Check() = %v, want nil", err)
	}
}

func testImage(t *testing.T, h Harness) {
	img, err := h.Runtime.Image(t.Context(), h.Image)
	if err != nil {
		t.Fatalf("Image(%q): %v", h.Image, err)
	}
	if !strings.HasPrefix(img.ID, "sha256:") || len(img.ID) != len("sha256:")+64 {
		t.Errorf("Image(%q).ID = %q, want an immutable id", h.Image, img.ID)
	}
	again, err := h.Runtime.Image(t.Context(), img.ID)
	if err != nil || again != img {
		t.Errorf("Image(its id) = %v, %v, want %v", again, err, img)
	}
	_, err = h.Runtime.Image(t.Context(), "podspawn.invalid/there-is/no-such:image")
	wantKind(t, "Image(unknown)", err, sandbox.KindImageNotFound)
	for name, ref := range map[string]string{
		"empty": "", "too long": strings.Repeat("a", 256), "traversal": "../containers/json", "query": "a?b=c",
		"space": "a b", "leading dash": "-a", "newline": "a\nb",
	} {
		_, err = h.Runtime.Image(t.Context(), ref)
		wantKind(t, "Image("+name+")", err, sandbox.KindInvalidSpec)
	}
}

func testLifetime(t *testing.T, h Harness) {
	p := params(t, h)
	c := start(t, h, p)
	if c.Sandbox != p.Sandbox || c.ID == "" || !c.Running {
		t.Errorf("Start = %+v, want a running container of %s", c, p.Sandbox)
	}
	if got, ok := find(t, h, p.Sandbox); !ok || got != c {
		t.Errorf("List has %+v, %v, want %+v", got, ok, c)
	}
	if err := h.Runtime.Destroy(t.Context(), p.Sandbox); err != nil {
		t.Fatalf("Destroy: %v", err)
	}
	if got, ok := find(t, h, p.Sandbox); ok {
		t.Errorf("List after Destroy has %+v", got)
	}
}

func testConflict(t *testing.T, h Harness) {
	p := params(t, h)
	first := start(t, h, p)
	_, err := h.Runtime.Start(t.Context(), p)
	wantKind(t, "second Start", err, sandbox.KindConflict)
	if got, ok := find(t, h, p.Sandbox); !ok || got != first {
		t.Errorf("after a refused second Start, List has %+v, %v, want the first: %+v", got, ok, first)
	}
}

func testRefused(t *testing.T, h Harness) {
	for name, tc := range map[string]struct {
		change func(*sandbox.StartParams)
		want   sandbox.Kind
	}{
		"image/unknown": {func(p *sandbox.StartParams) { p.ImageID = "sha256:" + strings.Repeat("0", 64) }, sandbox.KindImageNotFound},
		"image/by name": {func(p *sandbox.StartParams) { p.ImageID = h.Image }, sandbox.KindImageNotFound},
		"egress/full":   {func(p *sandbox.StartParams) { p.Egress = "full" }, sandbox.KindEgressDenied},
		"disk/too much": {func(p *sandbox.StartParams) { p.Resources.Disk = 51 << 30 }, sandbox.KindInvalidSpec},
		"memory/none":   {func(p *sandbox.StartParams) { p.Resources.Memory = 0 }, sandbox.KindInvalidSpec},
		"pids/none":     {func(p *sandbox.StartParams) { p.Resources.PIDs = 0 }, sandbox.KindInvalidSpec},
	} {
		t.Run(name, func(t *testing.T) {
			p := params(t, h)
			tc.change(&p)
			destroyAfter(t, h, p.Sandbox)
			_, err := h.Runtime.Start(t.Context(), p)
			wantKind(t, "Start", err, tc.want)
			if c, ok := find(t, h, p.Sandbox); ok {
				t.Errorf("a refused Start left %+v", c)
			}
		})
	}
	t.Run("socket directory/missing", func(t *testing.T) {
		p := params(t, h)
		p.SocketDir += "/missing"
		destroyAfter(t, h, p.Sandbox)
		if _, err := h.Runtime.Start(t.Context(), p); err == nil {
			t.Error("Start succeeded without a socket directory")
		}
		if c, ok := find(t, h, p.Sandbox); ok {
			t.Errorf("a failed Start left %+v", c)
		}
		if _, err := os.Stat(p.SocketDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Start made the missing socket directory: %v", err)
		}
	})
}

// testStartCanceled cancels starts at several moments. Whatever came of them, a
// start that returned an error has left nothing.
func testStartCanceled(t *testing.T, h Harness) {
	for _, after := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond, 400 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			p := params(t, h)
			destroyAfter(t, h, p.Sandbox)
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			if _, err := h.Runtime.Start(ctx, p); err == nil {
				return // quicker than the cancellation
			}
			if c, ok := find(t, h, p.Sandbox); ok {
				t.Errorf("a canceled Start left %+v", c)
			}
		})
	}
}

func testParallel(t *testing.T, h Harness) {
	ps := []sandbox.StartParams{params(t, h), params(t, h)}
	errs := make([]error, len(ps))
	var wg sync.WaitGroup
	for i, p := range ps {
		destroyAfter(t, h, p.Sandbox)
		wg.Go(func() { _, errs[i] = h.Runtime.Start(t.Context(), p) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("two Starts at once: %v", err)
	}
	for _, p := range ps {
		if c, ok := find(t, h, p.Sandbox); !ok || !c.Running {
			t.Errorf("after two Starts at once, List has %+v, %v", c, ok)
		}
	}
	// What one sandbox writes, the other does not see.
	run(t, h, ps[0].Sandbox, "echo mine >/tmp/mine")
	if out, code := sh(t, h, ps[1].Sandbox, "cat /tmp/mine"); code == 0 {
		t.Errorf("one sandbox reads the other's file: %q", out)
	}
}

func testDestroyIdempotent(t *testing.T, h Harness) {
	p := params(t, h)
	if err := h.Runtime.Destroy(t.Context(), p.Sandbox); err != nil {
		t.Errorf("Destroy of an id that never existed = %v, want nil", err)
	}
	start(t, h, p)
	errs := make([]error, 3)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = h.Runtime.Destroy(t.Context(), p.Sandbox) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Errorf("three Destroys at once: %v", err)
	}
	if err := h.Runtime.Destroy(t.Context(), p.Sandbox); err != nil {
		t.Errorf("Destroy of a destroyed sandbox = %v, want nil", err)
	}
	if c, ok := find(t, h, p.Sandbox); ok {
		t.Errorf("List after Destroy has %+v", c)
	}
}

func testDestroyCanceled(t *testing.T, h Harness) {
	p := params(t, h)
	start(t, h, p)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Runtime.Destroy(ctx, p.Sandbox); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Destroy with a canceled ctx = %v, want nil or canceled", err)
	}
	eventually(t, "destruction after its caller has gone", func() bool {
		_, ok := find(t, h, p.Sandbox)
		return !ok
	})
}

func testWatch(t *testing.T, h Harness) {
	before, during, living := params(t, h), params(t, h), params(t, h)
	for _, p := range []sandbox.StartParams{before, during, living} {
		start(t, h, p)
	}
	endGuest(t, h, before.Sandbox)
	eventually(t, "List says that the sandbox ended", func() bool {
		c, ok := find(t, h, before.Sandbox)
		return ok && !c.Running
	})

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan sandbox.ID)
	returned := make(chan error, 1)
	go func() {
		returned <- h.Runtime.Watch(ctx, func(id sandbox.ID) {
			select {
			case ended <- id:
			case <-ctx.Done():
			}
		})
	}()
	await := func(want sandbox.ID) {
		t.Helper()
		timeout := time.After(stepTimeout)
		for {
			select {
			case id := <-ended:
				if id == living.Sandbox {
					t.Fatalf("Watch reported a living sandbox")
				}
				if id == want {
					return
				}
			case err := <-returned:
				t.Fatalf("Watch returned early: %v", err)
			case <-timeout:
				t.Fatalf("Watch did not report %s within %s", want, stepTimeout)
			}
		}
	}
	await(before.Sandbox)
	endGuest(t, h, during.Sandbox)
	await(during.Sandbox)
	cancel()
	select {
	case err := <-returned:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Watch with a canceled ctx = %v, want canceled", err)
		}
	case <-time.After(stepTimeout):
		t.Error("Watch does not return when its ctx ends")
	}
}

// endGuest ends PID 1. The command that does it may be cut off by its own success.
func endGuest(t *testing.T, h Harness, id sandbox.ID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if out, code, err := h.Exec(ctx, id, "/bin/sh", "-c", "kill -TERM 1"); err != nil {
		t.Logf("kill PID 1: %q, %d, %v", out, code, err)
	}
}

// sh runs a shell command in a sandbox.
func sh(t *testing.T, h Harness, id sandbox.ID, command string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stepTimeout)
	defer cancel()
	out, code, err := h.Exec(ctx, id, "/bin/sh", "-c", command)
	if err != nil {
		t.Fatalf("run %q in %s: %v", command, id, err)
	}
	return strings.TrimSpace(out), code
}

// run is sh for a command that must succeed.
func run(t *testing.T, h Harness, id sandbox.ID, command string) string {
	t.Helper()
	out, code := sh(t, h, id, command)
	if code != 0 {
		t.Fatalf("%s", fmt.Sprintf("%q in %s = exit %d: %s", command, id, code, out))
	}
	return out
}
