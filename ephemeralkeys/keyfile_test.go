package ephemeralkeys

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestLoadOrCreateCA(t *testing.T) {
	path := filepath.Join(t.TempDir(), "user_ca")
	ca, created, err := LoadOrCreateCA(path, "podspawn user CA")
	if err != nil || !created {
		t.Fatalf("first LoadOrCreateCA = created %v, %v, want created", created, err)
	}
	checkMode(t, path, 0o400)
	checkMode(t, path+".pub", 0o644)
	want := line(ca.PublicKey()) + " podspawn user CA"
	if got := ca.AuthorizedKey(); got != want {
		t.Errorf("AuthorizedKey = %q, want %q", got, want)
	}
	if got := readFile(t, path+".pub"); got != want+"\n" {
		t.Errorf("public file = %q, want %q", got, want+"\n")
	}

	before := readFile(t, path)
	again, created, err := LoadOrCreateCA(path, "another comment")
	if err != nil || created {
		t.Fatalf("second LoadOrCreateCA = created %v, %v, want loaded", created, err)
	}
	if again.AuthorizedKey() != want || readFile(t, path) != before {
		t.Errorf("second LoadOrCreateCA has %q, want the same key and comment", again.AuthorizedKey())
	}
	loaded, err := LoadCA(path)
	if err != nil || loaded.AuthorizedKey() != want {
		t.Errorf("LoadCA = %v, want the same key", err)
	}
	names, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(names) != 2 {
		t.Errorf("the directory has %v, want the two files alone", names)
	}
}

func TestLoadOrCreateCAWritesThePublicFileAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "user_ca")
	ca, _, err := LoadOrCreateCA(path, "c")
	if err != nil {
		t.Fatal(err)
	}
	stranger := line(newSigner(t).PublicKey()) + " x\n"
	for name, spoil := range map[string]func() error{
		"missing":     func() error { return os.Remove(path + ".pub") },
		"another key": func() error { return os.WriteFile(path+".pub", []byte(stranger), 0o644) },
		"garbage":     func() error { return os.WriteFile(path+".pub", bytes.Repeat([]byte("x"), 1<<20), 0o644) },
		"two keys":    func() error { return os.WriteFile(path+".pub", []byte(ca.AuthorizedKey()+"\n"+stranger), 0o644) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if _, created, err := LoadOrCreateCA(path, "c"); err != nil || created {
			t.Fatalf("%s: LoadOrCreateCA = created %v, %v", name, created, err)
		}
		if got := readFile(t, path+".pub"); got != ca.AuthorizedKey()+"\n" {
			t.Errorf("%s: public file = %q, want the CA's key", name, got)
		}
	}
}

func TestLoadOrCreateCAKeepsCommentsOnOneLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "user_ca")
	ca, _, err := LoadOrCreateCA(path, "a\ncert-authority b")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(ca.AuthorizedKey(), "\n") || strings.Count(readFile(t, path+".pub"), "\n") != 1 {
		t.Errorf("AuthorizedKey = %q, want one line", ca.AuthorizedKey())
	}
}

func TestLoadOrCreateCAConcurrentlyMakesOneKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "user_ca")
	var made atomic.Int32
	var keys sync.Map
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			ca, created, err := LoadOrCreateCA(path, "c")
			if err != nil {
				t.Errorf("LoadOrCreateCA = %v", err)
				return
			}
			if created {
				made.Add(1)
			}
			keys.Store(ca.AuthorizedKey(), true)
		})
	}
	wg.Wait()
	n := 0
	keys.Range(func(_, _ any) bool { n++; return true })
	if made.Load() != 1 || n != 1 {
		t.Errorf("%d were created and %d keys are in use, want 1 and 1", made.Load(), n)
	}
}

func TestLoadCARefusesUnsafeFiles(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text := privatePEM(t, key)
	locked, err := ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	file := func(text string, mode os.FileMode) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := []struct {
		name string
		make func(*testing.T, string)
		want string // "" is accepted
	}{
		{"ok/0400", file(text, 0o400), ""},
		{"ok/0600", file(text, 0o600), ""},
		{"group reads", file(text, 0o440), "mode 0440"},
		{"others read", file(text, 0o404), "mode 0404"},
		{"others write", file(text, 0o602), "mode 0602"},
		{"empty", file("", 0o400), "no private key"},
		{"public key", file(line(newSigner(t).PublicKey()), 0o400), "no private key"},
		{"passphrase", file(string(pem.EncodeToMemory(locked)), 0o400), "passphrase"},
		{"large", file(text+strings.Repeat("\n", 16<<10), 0o400), "larger"},
		{"link", func(t *testing.T, path string) {
			file(text, 0o400)(t, path+".real")
			if err := os.Symlink(path+".real", path); err != nil {
				t.Fatal(err)
			}
		}, "symbolic link"},
		{"directory", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "not a regular file"},
		{"fifo", func(t *testing.T, path string) {
			if err := syscall.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a regular file"},
		{"another owner", func(t *testing.T, path string) {
			if os.Geteuid() != 0 {
				t.Skip("only root can give a file away")
			}
			file(text, 0o400)(t, path)
			if err := os.Chown(path, 12345, 0); err != nil {
				t.Fatal(err)
			}
		}, "belongs to uid 12345"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ca")
			tt.make(t, path)
			_, created, err := LoadOrCreateCA(path, "c")
			if tt.want == "" {
				if err != nil || created {
					t.Errorf("LoadOrCreateCA = created %v, %v, want loaded", created, err)
				}
				return
			}
			if !errors.Is(err, ErrKeyFile) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("LoadOrCreateCA = %v, want ErrKeyFile with %q", err, tt.want)
			}
			if _, err := os.Stat(path + ".pub"); err == nil {
				t.Error("a public key was written beside a refused file")
			}
		})
	}
}

func TestLoadCAOfMissingFile(t *testing.T) {
	if _, err := LoadCA(filepath.Join(t.TempDir(), "x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("LoadCA = %v, want fs.ErrNotExist", err)
	}
	if _, _, err := LoadOrCreateCA(filepath.Join(t.TempDir(), "missing", "x"), ""); err == nil {
		t.Error("LoadOrCreateCA in a missing directory = nil, want an error")
	}
}

func TestWriteFileAtomic(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "revoked.krl")
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	for _, text := range []string{"first", "second, longer", "3"} {
		reader, openErr := os.Open(path)
		if err := WriteFileAtomic(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := readFile(t, path); got != text {
			t.Errorf("content = %q, want %q", got, text)
		}
		checkMode(t, path, 0o644)
		if openErr == nil { // who opened it before still has the old one, whole
			var b bytes.Buffer
			if _, err := b.ReadFrom(reader); err != nil || b.String() == text || b.Len() == 0 {
				t.Errorf("an open file changed to %q, %v", b.String(), err)
			}
			reader.Close()
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFileAtomic(filepath.Join(dir, "taken"), nil, 0o644); err == nil {
		t.Error("WriteFileAtomic over a directory = nil, want an error")
	}
	if names, _ := os.ReadDir(dir); len(names) != 2 {
		t.Errorf("the directory has %v, want nothing temporary", names)
	}
}

func checkMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode() != want {
		t.Errorf("mode of %s = %v, want %v", filepath.Base(path), st.Mode(), want)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
