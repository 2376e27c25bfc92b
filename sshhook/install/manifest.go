package install

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

// manifestVersion is of the manifest's form.
const manifestVersion = 1

// Manifest is what set-up left behind: what it changed, so that Uninstall undoes
// exactly that, and hashes of every file that decides how sshd treats a sandbox
// login, so that the daemon lets nobody in under other rules. Safe for
// concurrent use once loaded.
type Manifest struct {
	Version   int               `json:"version"`
	Config    string            `json:"sshd_config"`
	Files     map[string]string `json:"files"` // path to sha256, also of each drop-in
	SFTP      string            `json:"sftp"`  // the text of Subsystem sftp, "" when there is none
	Hostnames []string          `json:"hostnames"`
	Users     []string          `json:"users,omitempty"` // that set-up made
	NSS       []string          `json:"nss,omitempty"`   // databases that set-up added extrausers to

	mu   sync.Mutex          // guards seen
	seen map[string]identity // of files whose hash was right
}

// identity changes whenever a file does.
type identity struct {
	dev, ino uint64
	size     int64
	mtime    unix.Timespec
	ctime    unix.Timespec
}

// LoadManifest reads the manifest; ManifestPath is where it is. fs.ErrNotExist
// means that set-up has not run.
func LoadManifest(path string) (*Manifest, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	m := &Manifest{}
	if err := json.Unmarshal([]byte(text), m); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if m.Version != manifestVersion {
		return nil, refuse(fmt.Sprintf("%s is of version %d", path, m.Version), "run podspawn server-setup again")
	}
	return m, nil
}

// Check returns nil if every file is as set-up left it and no drop-in was added
// or removed. It is cheap when nothing changed: files are hashed only when their
// identity is a new one.
func (m *Manifest) Check() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen == nil {
		m.seen = map[string]identity{}
	}
	names, err := watched(m.Config)
	if err != nil {
		return changed(m.Config, err)
	}
	for _, n := range names {
		if _, ok := m.Files[n]; !ok {
			return changed(n, errors.New("it is new"))
		}
	}
	for path, want := range m.Files {
		id, err := identify(path)
		if err != nil {
			return changed(path, err)
		}
		if m.seen[path] == id {
			continue
		}
		got, err := hashFile(path)
		if err != nil {
			return changed(path, err)
		}
		if got != want {
			return changed(path, errors.New("its content is another"))
		}
		m.seen[path] = id
	}
	return nil
}

func changed(path string, err error) error {
	return &sandbox.Error{
		Kind: sandbox.KindUnavailable,
		Msg:  path + " changed since podspawn server-setup",
		Hint: "run podspawn server-setup again, which checks it",
		Err:  err,
	}
}

// watched lists the files that decide about sandbox logins, as far as they exist.
func watched(config string) ([]string, error) {
	dropIns, err := filepath.Glob(filepath.Join(filepath.Dir(dropInPath(config)), "*.conf"))
	if err != nil {
		return nil, err
	}
	return append([]string{config, pamPath, nssPath}, dropIns...), nil
}

// record fills in the hashes.
func (m *Manifest) record() error {
	names, err := watched(m.Config)
	if err != nil {
		return err
	}
	m.Files = map[string]string{}
	for _, n := range names {
		if m.Files[n], err = hashFile(n); err != nil {
			return err
		}
	}
	return nil
}

// text is the manifest's file.
func (m *Manifest) text() (string, error) {
	slices.Sort(m.Users) // some may have been made anew after somebody removed them
	m.Users = slices.Compact(m.Users)
	slices.Sort(m.NSS)
	m.NSS = slices.Compact(m.NSS)
	b, err := json.MarshalIndent(m, "", "  ")
	return string(b) + "\n", err
}

func identify(path string) (identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return identity{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return identity{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}

func hashFile(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}
