package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// entry is a member of a tar and its content.
type entry struct {
	tar.Header
	text string
}

func tarOf(t testing.TB, members ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range members {
		h.Size = int64(len(h.text))
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		h.Mode = 0o6777
		if err := w.WriteHeader(&h.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(h.text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, text string) entry { return entry{tar.Header{Name: name}, text} }

func special(name string, kind byte, link string) entry {
	return entry{tar.Header{Name: name, Typeflag: kind, Linkname: link}, ""}
}

// Threat 79 for backups: a file that somebody hands to root leads nowhere else.
func TestUnpackRefusesWhatBackupDoesNotWrite(t *testing.T) {
	info := file(backupInfo, fmt.Sprintf(`{"version":%d}`, backupVersion))
	state := file(backupState, "x")
	for _, tc := range []struct {
		name string
		in   []byte
		ok   bool
	}{
		{"a backup", tarOf(t, info, state, file("keys/user_ca", "k"), file("ssh/user_ca.pub", "p"), file("config.yaml", "")), true},
		{"nothing", nil, false},
		{"no tar", []byte(strings.Repeat("no tar", 1000)), false},
		{"without info", tarOf(t, state), false},
		{"without state", tarOf(t, info), false},
		{"of another version", tarOf(t, file(backupInfo, `{"version":99}`), state), false},
		{"cut off", tarOf(t, info, state)[:1030], false},
		{"twice the same", tarOf(t, info, state, state), false},
		{"..", tarOf(t, info, state, file("keys/../../x", "")), false},
		{"leading ..", tarOf(t, info, state, file("../x", "")), false},
		{"absolute", tarOf(t, info, state, file("/etc/passwd", "")), false},
		{"another folder", tarOf(t, info, state, file("bin/x", "")), false},
		{"a folder deeper", tarOf(t, info, state, file("keys/a/b", "")), false},
		{"hidden", tarOf(t, info, state, file("keys/.x", "")), false},
		{"symbolic link", tarOf(t, info, state, special("keys/x", tar.TypeSymlink, "/etc")), false},
		{"hard link", tarOf(t, info, state, special("keys/x", tar.TypeLink, "/etc/shadow")), false},
		{"device", tarOf(t, info, state, special("keys/x", tar.TypeChar, "")), false},
		{"folder", tarOf(t, info, state, special("keys/", tar.TypeDir, "")), false},
		{"a huge key", tarOf(t, info, state, file("keys/x", strings.Repeat("x", maxBackupFile+1))), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "in")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			_, members, err := unpack(bytes.NewReader(tc.in), dir)
			if (err == nil) != tc.ok {
				t.Fatalf("unpack = %v, %v", members, err)
			}
			for _, m := range members {
				if m.mode&^0o644 != 0 {
					t.Errorf("mode of %s = %o", m.name, m.mode)
				}
			}
			outside, err := os.ReadDir(filepath.Dir(dir))
			if err != nil || len(outside) != 1 {
				t.Errorf("outside of the folder: %v, %v", outside, err)
			}
		})
	}
}

func FuzzUnpackStaysInside(f *testing.F) {
	f.Add(tarOf(f, file(backupInfo, `{"version":1}`), file(backupState, "x"), file("keys/k", "k")))
	f.Add(tarOf(f, file(backupInfo, `{"version":1}`), file("keys/../../x", "k")))
	f.Fuzz(func(t *testing.T, in []byte) {
		dir := filepath.Join(t.TempDir(), "in")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_, _, _ = unpack(bytes.NewReader(in), dir) // only where it writes matters
		if outside, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(outside) != 1 {
			t.Errorf("outside of the folder: %v, %v", outside, err)
		}
	})
}
