package image_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/docker/dockertest"
	"github.com/podspawn/podspawn/sandbox/image"
)

// TestBuild builds with the machine's cache when there is one to use: a recipe
// that was built before costs an import, a changed one a build.
func TestBuild(t *testing.T) {
	d := dockertest.Start(t)
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		if strings.Contains(os.Getenv("PODSPAWN_TEST_REQUIRE"), "docker") {
			t.Fatal("mmdebstrap is not installed")
		}
		t.Skip("mmdebstrap is not installed")
	}
	var out bytes.Buffer
	o := image.BuildOptions{Socket: d.Socket, Name: "podspawn-test/base", Tag: "t", Out: &out}
	first, err := image.Build(t.Context(), o)
	if err != nil {
		t.Fatalf("Build: %v\n%s", err, out.String())
	}
	if !first.New || first.ID == "" || first.Ref != "podspawn-test/base:t" {
		t.Errorf("Build = %+v, want a new image", first)
	}
	began := time.Now()
	second, err := image.Build(t.Context(), o)
	if err != nil {
		t.Fatalf("Build again: %v", err)
	}
	if second.New || second.Built || second.ID != first.ID {
		t.Errorf("Build again = %+v, want the same image %s left alone", second, first.ID)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Build again took %s", took)
	}
	list, err := image.List(t.Context(), d.Socket)
	if err != nil || len(list) != 1 || list[0].ID != first.ID || list[0].Recipe != first.Recipe {
		t.Errorf("List = %+v, %v, want %s alone", list, err, first.ID)
	}
	d.ImportBusybox(t, "not-podspawn/busybox:latest")
	if removed, _, err := image.Prune(t.Context(), d.Socket, t.TempDir()); err != nil || len(removed) != 0 {
		t.Errorf("Prune = %+v, %v, want nothing removed: the image has its name", removed, err)
	}
	// Somebody else's image takes the name; ours is then nobody's.
	d.ImportBusybox(t, first.Ref)
	if removed, _, err := image.Prune(t.Context(), d.Socket, t.TempDir()); err != nil || len(removed) != 1 || removed[0].ID != first.ID {
		t.Errorf("Prune = %+v, %v, want %s removed", removed, err, first.ID)
	}
}

func TestBuildCanceledLeavesNothing(t *testing.T) {
	d := dockertest.Start(t)
	cache := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// The first line of the build's own output is the moment to cancel.
	out := writerFunc(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte("building")) {
			time.AfterFunc(300*time.Millisecond, cancel)
		}
		return len(p), nil
	})
	_, err := image.Build(ctx, image.BuildOptions{Socket: d.Socket, Cache: cache, Out: out})
	if err == nil || !errors.Is(err, context.Canceled) {
		t.Fatalf("canceled Build = %v, want canceled", err)
	}
	entries, err := os.ReadDir(cache)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "image.lock" {
			t.Errorf("a canceled build left %s", filepath.Join(cache, e.Name()))
		}
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(b), cache) {
		t.Errorf("a canceled build left a mount below %s (%v)", cache, err)
	}
}

func TestBuildWithoutEngineIsUnavailable(t *testing.T) {
	_, err := image.Build(t.Context(), image.BuildOptions{Suite: "bookworm", Cache: t.TempDir(), Socket: filepath.Join(t.TempDir(), "none.sock")})
	if sandbox.KindOf(err) != sandbox.KindUnavailable || sandbox.Public(err).Hint == "" {
		t.Errorf("Build without an engine = %v (%s), want unavailable with a hint", err, sandbox.KindOf(err))
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
