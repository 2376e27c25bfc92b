package ephemeralkeys

import (
	"crypto/rand"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
)

// CA signs certificates. One CA signs either user or host certificates, by
// convention of its owner: sshd and clients trust different files for the two.
// Safe for concurrent use.
type CA struct {
	comment string
	public  ssh.PublicKey

	mu     sync.Mutex // held while signing: the signer may be one connection to an agent
	signer ssh.Signer
}

// NewCA returns a CA that signs with signer, which may live in an agent or a device.
func NewCA(signer ssh.Signer) *CA {
	return &CA{signer: signer, public: signer.PublicKey()}
}

// PublicKey returns the key by which certificates of this CA are known.
func (ca *CA) PublicKey() ssh.PublicKey { return ca.public }

// AuthorizedKey returns the public key as one line with its comment, without a
// line ending: what TrustedUserCAKeys and @cert-authority lines hold.
func (ca *CA) AuthorizedKey() string {
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ca.public)))
	if ca.comment != "" {
		line += " " + ca.comment
	}
	return line
}

func (ca *CA) sign(cert *ssh.Certificate) error {
	if err := checkKey(ca.public); err != nil {
		return fmt.Errorf("sign with this CA: %w", err)
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if err := cert.SignCert(rand.Reader, ca.signer); err != nil {
		return fmt.Errorf("sign certificate: %w", err)
	}
	return nil
}
