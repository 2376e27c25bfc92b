package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podspawn/podspawn/sandbox"
)

func TestHostSuite(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"debian":        {"ID=debian\nVERSION_CODENAME=bookworm\n", "bookworm"},
		"ubuntu quoted": {"ID=ubuntu\nVERSION_CODENAME=\"noble\"\n", "noble"},
		"other":         {"ID=fedora\nVERSION_CODENAME=\"\"\n", ""},
		"no codename":   {"ID=debian\n", ""},
		"hostile":       {"ID=debian\nVERSION_CODENAME=--mode=x;id\n", ""},
		"empty":         {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := hostSuite(strings.NewReader(tc.text))
			if got != tc.want && err == nil {
				t.Errorf("hostSuite(%q) = %q, want %q", tc.text, got, tc.want)
			}
			if tc.want == "" && (sandbox.KindOf(err) != sandbox.KindUnavailable || sandbox.Public(err).Hint == "") {
				t.Errorf("hostSuite(%q) = %q, %v, want unavailable with a hint", tc.text, got, err)
			}
		})
	}
}

func TestRecipeDigestChangesWithWhatItIsMadeOf(t *testing.T) {
	r := newRecipe("bookworm", "amd64")
	if r.digest() != newRecipe("bookworm", "amd64").digest() {
		t.Error("the same recipe has two digests")
	}
	other := r
	other.Finish += "\n"
	for name, o := range map[string]recipe{
		"suite": newRecipe("trixie", "amd64"), "architecture": newRecipe("bookworm", "arm64"), "script": other,
	} {
		if o.digest() == r.digest() {
			t.Errorf("another %s has the same digest", name)
		}
	}
}

func TestSources(t *testing.T) {
	write := func(files map[string]string) string {
		root := t.TempDir()
		for name, text := range files {
			path := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return root
	}
	const deb822, list = "etc/apt/sources.list.d/debian.sources", "etc/apt/sources.list"
	for name, tc := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"none":            {nil, nil},
		"deb822":          {map[string]string{deb822: "Types: deb\n", list: "# see sources.list.d\n"}, []string{"/" + deb822}},
		"list":            {map[string]string{list: "deb file:/x y main\n"}, []string{"/" + list}},
		"list of nothing": {map[string]string{list: "# empty\n"}, nil},
		"others only":     {map[string]string{"etc/apt/sources.list.d/other.list": "deb file:/x y main\n"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			root := write(tc.files)
			var want []string
			for _, w := range tc.want {
				want = append(want, root+w)
			}
			if diff := cmp.Diff(want, sources(root)); diff != "" {
				t.Errorf("sources (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExplainGivesARemedy(t *testing.T) {
	for name, tc := range map[string]struct {
		said string
		want sandbox.Kind
	}{
		"disk":    {"cpio: write error: No space left on device", sandbox.KindCapacity},
		"network": {"E: Failed to fetch x  Temporary failure resolving 'y'", sandbox.KindUnavailable},
		"package": {"E: Unable to locate package ripgrep", sandbox.KindUnavailable},
		"other":   {"E: chroot failed", sandbox.KindInternal},
	} {
		t.Run(name, func(t *testing.T) {
			err := explain(errors.New("exit status 25"), tc.said, "/cache")
			if sandbox.KindOf(err) != tc.want || sandbox.Public(err).Hint == "" {
				t.Errorf("explain(%q) = %v (%s, hint %q), want %s", tc.said, err, sandbox.KindOf(err), sandbox.Public(err).Hint, tc.want)
			}
			if strings.Contains(sandbox.Public(err).Msg, tc.said) {
				t.Errorf("explain(%q) shows what mmdebstrap said as its own words", tc.said)
			}
		})
	}
}

func TestLockHoldsOffASecondBuild(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), path, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var out bytes.Buffer
	if _, err := lock(ctx, path, &out); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("second lock = %v, want deadline exceeded", err)
	}
	if !strings.Contains(out.String(), "waiting") {
		t.Errorf("who waits for a lock is told %q", out.String())
	}
	unlock()
	unlock, err = lock(t.Context(), path, &out)
	if err != nil {
		t.Fatalf("lock after unlock: %v", err)
	}
	unlock()
}

func TestPruneCacheKeepsTheNewestAndWhatIsNotItsOwn(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"base-a-1.tar", "base-b-2.tar", "runsc", "other.tar"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(int64(1000+i), 0)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, ".build-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := pruneCache(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(dir, ".build-1"), filepath.Join(dir, "base-a-1.tar")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	for _, name := range []string{"base-b-2.tar", "runsc", "other.tar"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("pruning took %s: %v", name, err)
		}
	}
}
