package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/podspawn/podspawn/ephemeralkeys"
)

const (
	hostCertTTL   = 365 * 24 * time.Hour
	hostCertRenew = 30 * 24 * time.Hour // renewed when less is left
	hostKeyPub    = "/etc/ssh/ssh_host_ed25519_key.pub"
)

// keyProblem says in words why the keys and the files made of them are not as
// they should be; "" when they are.
func keyProblem(names []string, now time.Time) (string, error) {
	for _, p := range []string{UserCAKey, HostCAKey, userCAPub, hostCAPub, revokedKRL, hostKeyPub, hostCert} {
		if _, err := os.Stat(p); errors.Is(err, fs.ErrNotExist) {
			return "make " + p, nil
		} else if err != nil {
			return "", err
		}
	}
	for key, pub := range map[string]string{UserCAKey: userCAPub, HostCAKey: hostCAPub} {
		ca, err := ephemeralkeys.LoadCA(key)
		if err != nil {
			return "", err
		}
		text, err := readFile(pub)
		if err != nil {
			return "", err
		}
		if !hasKey(text, ca.PublicKey()) {
			return "write " + pub, nil
		}
		if key == HostCAKey {
			if why := hostCertProblem(ca, names, now); why != "" {
				return why, nil
			}
		}
	}
	return "", nil
}

// hasKey reports whether the key is in a file of one key a line; there are two
// while the CA is being changed.
func hasKey(text string, want ssh.PublicKey) bool {
	for l := range strings.Lines(text) {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(l))
		if err == nil && bytes.Equal(key.Marshal(), want.Marshal()) {
			return true
		}
	}
	return false
}

func hostCertProblem(ca *ephemeralkeys.CA, names []string, now time.Time) string {
	const sign = "sign the machine's host key: "
	pub, err := readKey(hostKeyPub)
	if err != nil {
		return sign + err.Error()
	}
	key, err := readKey(hostCert)
	if err != nil {
		return sign + err.Error()
	}
	cert, ok := key.(*ssh.Certificate)
	switch {
	case !ok || !bytes.Equal(cert.Key.Marshal(), pub.Marshal()):
		return sign + "the certificate is not for it"
	case !bytes.Equal(cert.SignatureKey.Marshal(), ca.PublicKey().Marshal()):
		return sign + "the certificate is of another CA"
	case !slices.Equal(cert.ValidPrincipals, names):
		return sign + "the certificate is for " + strings.Join(cert.ValidPrincipals, ", ")
	case now.Add(hostCertRenew).Unix() > int64(cert.ValidBefore) || now.Unix() < int64(cert.ValidAfter):
		return sign + "the certificate ends soon"
	}
	return ""
}

func readKey(path string) (ssh.PublicKey, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return key, nil
}

// makeKeys makes what is missing and leaves existing CA keys alone. It is not
// rolled back: keys harm nobody, and a key once made may be known to clients.
func makeKeys(names []string, now time.Time) error {
	userCA, _, err := ephemeralkeys.LoadOrCreateCA(UserCAKey, "podspawn-user-ca")
	if err != nil {
		return err
	}
	hostCA, _, err := ephemeralkeys.LoadOrCreateCA(HostCAKey, "podspawn-host-ca")
	if err != nil {
		return err
	}
	for path, ca := range map[string]*ephemeralkeys.CA{userCAPub: userCA, hostCAPub: hostCA} {
		text, _, err := readOptional(path)
		if err != nil {
			return err
		}
		if !hasKey(text, ca.PublicKey()) {
			if err := ephemeralkeys.WriteFileAtomic(path, []byte(ca.AuthorizedKey()+"\n"), 0o644); err != nil {
				return err
			}
		}
	}
	if _, err := os.Stat(revokedKRL); errors.Is(err, fs.ErrNotExist) {
		krl, err := ephemeralkeys.MarshalKRL(ephemeralkeys.KRL{Generated: now, Comment: "podspawn"})
		if err != nil {
			return err
		}
		if err := ephemeralkeys.WriteFileAtomic(revokedKRL, krl, 0o644); err != nil {
			return err
		}
	}
	if hostCertProblem(hostCA, names, now) == "" {
		return nil
	}
	pub, err := readKey(hostKeyPub)
	if err != nil {
		return err
	}
	cert, err := hostCA.IssueHost(pub, names, now, hostCertTTL, uint64(now.Unix())) // the time serves as serial: nothing revokes host certificates
	if err != nil {
		return err
	}
	return ephemeralkeys.WriteFileAtomic(hostCert, ssh.MarshalAuthorizedKey(cert), 0o644)
}

// hostKeys makes the machine's host keys where it has none, as its package would
// have: without one sshd does not even check a configuration.
func hostKeys(ctx context.Context, o Options) error {
	if _, err := os.Stat(hostKeyPub); !errors.Is(err, fs.ErrNotExist) || os.Geteuid() != 0 {
		return nil // the preflight says what is wrong
	}
	if o.DryRun {
		return refuse("this machine has no "+hostKeyPub+", so nothing can be checked", "make host keys with ssh-keygen -A, or leave out --dry-run")
	}
	o.say("make the machine's host keys")
	return run(ctx, "ssh-keygen", "-A")
}
