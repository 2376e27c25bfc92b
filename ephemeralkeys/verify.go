package ephemeralkeys

import (
	"bytes"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"
)

// Names in certificates, from OpenSSH's PROTOCOL.certkeys.
const (
	optForceCommand   = "force-command"
	optSourceAddress  = "source-address"
	extPTY            = "permit-pty"
	extPortForwarding = "permit-port-forwarding"
	extAgent          = "permit-agent-forwarding"
	extX11            = "permit-X11-forwarding"
)

const (
	minNonce = 16
	maxNonce = 64
)

// Policy is what every certificate of this host has in common.
type Policy struct {
	// ForceCommand is the one command that certificates are issued with. "" matches
	// no certificate.
	ForceCommand string
}

// Verify checks everything about a certificate that can be known without state,
// independently of what sshd has checked: sshd's settings may have been changed,
// and the hooks also see certificates that sshd refuses later. It does not check
// the client's address (sshd does), revocation, or the number of uses, and a
// certificate proves nothing about who presents it.
//
// The first reason found is returned: form, kind, authority, signature, validity,
// and only then, for a certificate that is really one of ours, its content.
func Verify(cert *ssh.Certificate, login string, cas []ssh.PublicKey, now time.Time, p Policy) (Binding, error) {
	steps := []func() error{
		func() error { return checkForm(cert) },
		func() error { return checkKind(cert) },
		func() error { return checkSigner(cert, cas) },
		func() error { return checkValidity(cert, now) },
		func() error { return checkPrincipals(cert, login) },
		func() error { return checkCriticalOptions(cert, p) },
		func() error { return checkExtensions(cert) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return Binding{}, err
		}
	}
	b, err := decodeBinding(cert.Extensions[BindingExtension])
	if err != nil {
		return Binding{}, fmt.Errorf("%w: %w", ErrBinding, err)
	}
	return b, nil
}

func checkForm(cert *ssh.Certificate) error {
	switch {
	case cert == nil || cert.Key == nil || cert.SignatureKey == nil || cert.Signature == nil:
		return fmt.Errorf("%w: incomplete", ErrMalformed)
	case len(cert.Nonce) < minNonce || len(cert.Nonce) > maxNonce:
		return fmt.Errorf("%w: nonce of %d bytes", ErrMalformed, len(cert.Nonce))
	case len(cert.Reserved) != 0:
		return fmt.Errorf("%w: reserved field in use", ErrMalformed)
	case cert.Serial == 0:
		return fmt.Errorf("%w: serial 0", ErrMalformed)
	case !keyIDPattern.MatchString(cert.KeyId):
		return fmt.Errorf("%w: key id", ErrMalformed)
	}
	if err := checkKey(cert.Key); err != nil {
		return fmt.Errorf("%w: subject key: %w", ErrMalformed, err)
	}
	return nil
}

func checkKind(cert *ssh.Certificate) error {
	if cert.CertType != ssh.UserCert {
		return fmt.Errorf("%w: type %d", ErrHostCertificate, cert.CertType)
	}
	return nil
}

func checkSigner(cert *ssh.Certificate, cas []ssh.PublicKey) error {
	if !known(cert.SignatureKey, cas) {
		return ErrUnknownCA
	}
	if cert.Signature.Format == ssh.KeyAlgoRSA { // SHA-1
		return fmt.Errorf("%w: made with SHA-1", ErrSignature)
	}
	unsigned := *cert
	unsigned.Signature = nil
	text := unsigned.Marshal()
	text = text[:len(text)-4] // the empty signature's length
	if err := cert.SignatureKey.Verify(text, cert.Signature); err != nil {
		return ErrSignature
	}
	return nil
}

func known(key ssh.PublicKey, cas []ssh.PublicKey) bool {
	blob := key.Marshal()
	for _, ca := range cas {
		if ca != nil && bytes.Equal(ca.Marshal(), blob) {
			return true
		}
	}
	return false
}

// checkValidity counts as sshd does: from ValidAfter on, up to and without
// ValidBefore. The minute that clocks may differ is in the certificate itself.
func checkValidity(cert *ssh.Certificate, now time.Time) error {
	t := uint64(max(now.Unix(), 0))
	switch {
	case cert.ValidBefore <= cert.ValidAfter:
		return fmt.Errorf("%w: never valid", ErrExpired)
	case t < cert.ValidAfter:
		return fmt.Errorf("%w: for %d s", ErrNotYetValid, cert.ValidAfter-t)
	case t >= cert.ValidBefore:
		return fmt.Errorf("%w: %d s ago", ErrExpired, t-cert.ValidBefore)
	case cert.ValidBefore-cert.ValidAfter > uint64((MaxTTL+Backdate)/time.Second):
		return ErrLifetime
	}
	return nil
}

// checkPrincipals demands the login alone. A certificate without principals is
// one for everybody to some readers, and "*" and commas mean something to others.
func checkPrincipals(cert *ssh.Certificate, login string) error {
	if n := len(cert.ValidPrincipals); n != 1 {
		return fmt.Errorf("%w: there are %d", ErrPrincipals, n)
	}
	if !principalPattern.MatchString(login) {
		return fmt.Errorf("%w: the login is none of ours", ErrPrincipals)
	}
	if cert.ValidPrincipals[0] != login {
		return ErrPrincipals
	}
	return nil
}

func checkCriticalOptions(cert *ssh.Certificate, p Policy) error {
	if cmd := cert.CriticalOptions[optForceCommand]; cmd == "" || cmd != p.ForceCommand {
		return fmt.Errorf("%w: force-command is missing or another one", ErrCriticalOption)
	}
	for name, value := range cert.CriticalOptions {
		switch name {
		case optForceCommand:
		case optSourceAddress:
			if normal, err := normalAddresses(value); err != nil || normal != value {
				return fmt.Errorf("%w: source-address is not a normal list of networks", ErrCriticalOption)
			}
		default:
			return fmt.Errorf("%w: %q", ErrCriticalOption, clip(name))
		}
	}
	return nil
}

func checkExtensions(cert *ssh.Certificate) error {
	for name, value := range cert.Extensions {
		switch name {
		case extPTY, extPortForwarding, extAgent, extX11:
			if value != "" {
				return fmt.Errorf("%w: %s has a value", ErrExtension, name)
			}
		case BindingExtension:
		default:
			return fmt.Errorf("%w: %q", ErrExtension, clip(name))
		}
	}
	return nil
}

// clip bounds what an error repeats of foreign text.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
