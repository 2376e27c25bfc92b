package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/podspawn/podspawn/ephemeralkeys"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// Files of a keyring, in its folder. The private key of a CA that was replaced is
// not kept.
const (
	caKeyFile     = "user_ca"
	nextKeyFile   = "user_ca.next"
	retiredFile   = "retired_user_cas.json"
	maxRetired    = 8
	maxOldCAsFile = 64 << 10
)

// Keyring holds the user CA and, for a while after it was replaced, the public
// keys of its predecessors. sshd reads the same set from a file of public keys.
//
// Replacing it goes through these steps, and a crash between any two leaves a set
// that works: the next key is made; the present one is listed as retired; sshd is
// told to trust both; the next key gets the present one's name. Only the last
// step changes who signs. Safe for concurrent use.
type Keyring struct {
	dir    string // "" for one that can't be replaced
	public string // the file that sshd reads

	mu  sync.RWMutex // guards what follows
	ca  *ephemeralkeys.CA
	old []retired
}

// retired is a CA whose certificates are accepted until a time.
type retired struct {
	Key   string    `json:"key"` // one line of authorized_keys form
	Until time.Time `json:"until"`
}

func (r retired) parse() (ssh.PublicKey, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(r.Key))
	return key, err
}

// OpenKeyring loads the user CA in dir and finishes or forgets a change that a
// crash interrupted. public is the file of TrustedUserCAKeys.
func OpenKeyring(dir, public string, now time.Time) (*Keyring, error) {
	ca, err := ephemeralkeys.LoadCA(filepath.Join(dir, caKeyFile))
	if err != nil {
		return nil, err
	}
	k := &Keyring{dir: dir, public: public, ca: ca}
	if k.old, err = readRetired(filepath.Join(dir, retiredFile)); err != nil {
		return nil, err
	}
	for _, name := range []string{nextKeyFile, nextKeyFile + ".pub"} { // of a change that came to nothing
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	k.drop(now)
	return k, k.save()
}

func readRetired(path string) ([]retired, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if st.Size() > maxOldCAsFile {
		return nil, fmt.Errorf("%s is larger than it can be", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var old []retired
	if err := json.Unmarshal(text, &old); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	for _, r := range old {
		if _, err := r.parse(); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
	}
	return old, nil
}

// drop forgets predecessors whose time is over, and the present CA where a crash
// left it among them. It reports whether there were any.
func (k *Keyring) drop(now time.Time) bool {
	var kept []retired
	for _, r := range k.old {
		if now.Before(r.Until) && !sameKey(r.Key, k.ca.AuthorizedKey()) {
			kept = append(kept, r)
		}
	}
	changed := len(kept) != len(k.old)
	k.old = kept
	return changed
}

// sameKey compares two lines of authorized_keys form without their comments.
func sameKey(a, b string) bool {
	fa, fb := strings.Fields(a), strings.Fields(b)
	return len(fa) > 1 && len(fb) > 1 && fa[1] == fb[1]
}

// save writes both files, those that differ.
func (k *Keyring) save() error {
	if k.dir == "" {
		return nil
	}
	b, err := json.Marshal(k.old)
	if err != nil {
		return err
	}
	if err := writeIfNew(filepath.Join(k.dir, retiredFile), b, 0o600); err != nil {
		return err
	}
	text := k.ca.AuthorizedKey() + "\n"
	for _, r := range k.old {
		text += r.Key + "\n"
	}
	return writeIfNew(k.public, []byte(text), 0o644)
}

func writeIfNew(path string, b []byte, perm fs.FileMode) error {
	have, err := os.ReadFile(path)
	if err == nil && string(have) == string(b) {
		return nil
	}
	return ephemeralkeys.WriteFileAtomic(path, b, perm)
}

// Current returns the CA that signs.
func (k *Keyring) Current() *ephemeralkeys.CA {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.ca
}

// Trusted returns the keys whose certificates are accepted now.
func (k *Keyring) Trusted(now time.Time) []ssh.PublicKey {
	k.mu.RLock()
	defer k.mu.RUnlock()
	keys := []ssh.PublicKey{k.ca.PublicKey()}
	for _, r := range k.old {
		if key, err := r.parse(); err == nil && now.Before(r.Until) { // parsed when it was read
			keys = append(keys, key)
		}
	}
	return keys
}

// List is Trusted for people, the signing one first.
func (k *Keyring) List(now time.Time) []localapi.TrustedCA {
	k.mu.RLock()
	defer k.mu.RUnlock()
	out := []localapi.TrustedCA{{Key: k.ca.AuthorizedKey(), Fingerprint: ssh.FingerprintSHA256(k.ca.PublicKey())}}
	for _, r := range k.old {
		if key, err := r.parse(); err == nil && now.Before(r.Until) { // parsed when it was read
			out = append(out, localapi.TrustedCA{Key: r.Key, Fingerprint: ssh.FingerprintSHA256(key), Until: r.Until.UTC()})
		}
	}
	return out
}

// Rotate makes a new CA that signs from now on; the one before is accepted for
// overlap more.
func (k *Keyring) Rotate(now time.Time, overlap time.Duration) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dir == "" {
		return sandbox.Errorf(sandbox.KindUnavailable, "replace the key where it is kept", "this host's user CA is not kept in a file of its own")
	}
	k.drop(now)
	if len(k.old) >= maxRetired {
		return sandbox.Errorf(sandbox.KindConflict, "wait until one of them is forgotten", "%d former CAs are still trusted", len(k.old))
	}
	next := filepath.Join(k.dir, nextKeyFile)
	for _, name := range []string{next, next + ".pub"} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	ca, _, err := ephemeralkeys.LoadOrCreateCA(next, "podspawn-user-ca")
	if err != nil {
		return fmt.Errorf("make a new user CA: %w", err)
	}
	// Until it signs, the next one is listed like a retired one: after a crash here
	// it is trusted for a while and nobody has its key.
	before := k.old
	undo := func(err error) error {
		k.old = before
		return errors.Join(err, k.save())
	}
	k.old = append(append([]retired{}, before...), retired{Key: k.ca.AuthorizedKey(), Until: now.Add(overlap)}, retired{Key: ca.AuthorizedKey(), Until: now.Add(overlap + time.Minute)})
	if err := k.save(); err != nil { // both trusted, whoever signs
		return undo(err)
	}
	if err := os.Rename(next, filepath.Join(k.dir, caKeyFile)); err != nil {
		return undo(err)
	}
	k.ca = ca
	k.drop(now)
	return errors.Join(os.Rename(next+".pub", filepath.Join(k.dir, caKeyFile+".pub")), k.save())
}

// Tidy forgets predecessors whose time is over and tells sshd.
func (k *Keyring) Tidy(now time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.drop(now) {
		return nil
	}
	return k.save()
}
