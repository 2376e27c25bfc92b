package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// A backup is a tar of regular files: backup.json first, then state.db, and what
// belongs to it. Nothing else is accepted when it is read.
const (
	backupVersion = 1
	backupInfo    = "backup.json"
	backupState   = "state.db"

	maxStateSize  = 16 << 30
	maxBackupFile = 1 << 20 // any other
)

// backupName is what a member may be called. There is no dot at a beginning and
// one folder at most, so no name leads out of where it is put.
var backupName = regexp.MustCompile(`^(backup\.json|state\.db|config\.yaml|setup\.json|(keys|ssh)/[A-Za-z0-9_][A-Za-z0-9_.-]{0,100})$`)

// backupHeader is backup.json.
type backupHeader struct {
	Version   int       `json:"version"`
	CreatedAt time.Time `json:"created_at"`
	Host      string    `json:"host"`
	Podspawn  string    `json:"podspawn"`
}

// places says where a backup's members are on this host.
func (a *app) places(c *config) map[string]string {
	return map[string]string{
		backupState: filepath.Join(c.StateDir, "state.db"), "setup.json": filepath.Join(c.StateDir, "setup.json"),
		"config.yaml": a.configPath(), "keys": filepath.Join(c.StateDir, "keys"), "ssh": sshDir,
	}
}

// configPath is where the configuration is read from.
func (a *app) configPath() string {
	for _, p := range []string{a.configFile, a.getenv(envConfig)} {
		if p != "" {
			return p
		}
	}
	return defaultConfigFile
}

// writeMember copies one regular file. A missing one is left out.
func writeMember(w *tar.Writer, name, path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", path)
	}
	h := &tar.Header{Name: name, Mode: int64(st.Mode().Perm()), Size: st.Size(), ModTime: st.ModTime(), Format: tar.FormatPAX}
	if err := w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if _, err := io.Copy(w, f); err != nil { // one that grew meanwhile is an error of w's
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// member is a file of a backup that was unpacked.
type member struct {
	name string
	mode os.FileMode
}

// unpack writes a backup's members below dir, an empty folder of root's, and
// returns them. It refuses whatever a backup does not have.
func unpack(r io.Reader, dir string) (head backupHeader, members []member, err error) {
	bad := func(err error) error {
		return withHint(fmt.Errorf("this is no backup of podspawn: %w", err), "name a file that podspawn backup wrote")
	}
	seen := map[string]bool{}
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return head, nil, bad(err)
		}
		limit := int64(maxBackupFile)
		if h.Name == backupState {
			limit = maxStateSize
		}
		switch {
		case h.Typeflag != tar.TypeReg || !backupName.MatchString(h.Name) || strings.Contains(h.Name, ".."):
			return head, nil, bad(fmt.Errorf("member %q", h.Name))
		case seen[h.Name]:
			return head, nil, bad(fmt.Errorf("%s twice", h.Name))
		case h.Size > limit:
			return head, nil, bad(fmt.Errorf("%s of %d bytes", h.Name, h.Size))
		case len(seen) == 0 && h.Name != backupInfo:
			return head, nil, bad(fmt.Errorf("it does not begin with %s", backupInfo))
		}
		seen[h.Name] = true
		if h.Name == backupInfo {
			if err := json.NewDecoder(t).Decode(&head); err != nil {
				return head, nil, bad(err)
			}
			if head.Version != backupVersion {
				return head, nil, withHint(fmt.Errorf("the backup is of version %d, this podspawn reads %d", head.Version, backupVersion),
					"restore it with the podspawn that wrote it: "+oneLine(head.Podspawn))
			}
			continue
		}
		if err := unpackFile(filepath.Join(dir, filepath.FromSlash(h.Name)), t); err != nil {
			return head, nil, err
		}
		members = append(members, member{name: h.Name, mode: h.FileInfo().Mode().Perm() & 0o644})
	}
	if !seen[backupState] {
		return head, nil, bad(errors.New("it has no state.db, perhaps because it was cut off"))
	}
	return head, members, nil
}

func unpackFile(path string, r io.Reader) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, r); err != nil { // bounded by the header, which was checked
		return withHint(fmt.Errorf("unpack the backup: %w", err), "it may be cut off, or the disk full")
	}
	return f.Sync()
}
