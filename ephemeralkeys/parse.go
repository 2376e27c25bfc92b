package ephemeralkeys

import (
	"bytes"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

const (
	maxKeyLine     = 16 << 10
	maxCertificate = 64 << 10 // of base64
	maxAuthInfo    = 4 * maxCertificate
	minRSABits     = 2048
	maxRSABits     = 8192
)

const certSuffix = "-cert-v01@openssh.com"

// algoDSA is only known here to be refused in words.
const algoDSA = "ssh-dss"

// checkKey reports whether we sign this key, and with this key.
func checkKey(key ssh.PublicKey) error {
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
		ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return nil
	case ssh.KeyAlgoRSA:
		crypto, ok := key.(ssh.CryptoPublicKey)
		if !ok {
			return fmt.Errorf("%w: an RSA key of unknown size", ErrPublicKey)
		}
		k, ok := crypto.CryptoPublicKey().(*rsa.PublicKey)
		if !ok {
			return fmt.Errorf("%w: an RSA key of unknown size", ErrPublicKey)
		}
		if n := k.N.BitLen(); n < minRSABits || n > maxRSABits {
			return fmt.Errorf("%w: RSA of %d bits; %d to %d are accepted, ed25519 is better", ErrPublicKey, n, minRSABits, maxRSABits)
		}
		return nil
	case algoDSA:
		return fmt.Errorf("%w: DSA is broken; use ed25519", ErrPublicKey)
	}
	if strings.Contains(key.Type(), "-cert-") {
		return fmt.Errorf("%w: this is a certificate; send the public key that it was made from", ErrPublicKey)
	}
	return fmt.Errorf("%w: this type is not supported; use ed25519, ecdsa, rsa or a security key", ErrPublicKey)
}

// signable are the types that checkKey may accept.
var signable = []string{
	ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
	ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256, ssh.KeyAlgoRSA,
}

// ParsePublicKey reads the one line of a .pub file, with or without its comment
// and line ending. No error repeats any of it: it may be a secret sent by mistake.
func ParsePublicKey(line string) (ssh.PublicKey, error) {
	if looksPrivate(line) {
		return nil, fmt.Errorf("%w: %w", ErrPublicKey, ErrPrivateKey)
	}
	if len(line) > maxKeyLine {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrPublicKey, maxKeyLine)
	}
	line = strings.TrimSpace(line)
	if strings.ContainsAny(line, "\r\n\x00") {
		return nil, fmt.Errorf("%w: more than one line", ErrPublicKey)
	}
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return nil, fmt.Errorf("%w: expected a line such as: ssh-ed25519 AAAA… comment", ErrPublicKey)
	}
	name := fields[0]
	switch {
	case strings.HasSuffix(name, certSuffix):
		return nil, fmt.Errorf("%w: this is a certificate; send the public key that it was made from", ErrPublicKey)
	case name == algoDSA:
		return nil, fmt.Errorf("%w: DSA is broken; use ed25519", ErrPublicKey)
	case !slices.Contains(signable, name):
		return nil, fmt.Errorf("%w: the line must begin with a supported key type, such as ssh-ed25519, and have no options", ErrPublicKey)
	}
	key, err := parseBlob(name, fields[1])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPublicKey, err)
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	return key, nil
}

// looksPrivate recognises PEM of every kind, PuTTY's files, and the bare base64
// of an OpenSSH private key.
func looksPrivate(s string) bool {
	upper := strings.ToUpper(s[:min(len(s), maxCertificate)])
	return strings.Contains(upper, "PRIVATE KEY") ||
		strings.Contains(upper, "PRIVATE-LINES") ||
		strings.Contains(upper, "PUTTY-USER-KEY-FILE") ||
		strings.Contains(s, "b3BlbnNzaC1rZXktdjE") // openssh-key-v1
}

// parseBlob decodes base64 of a key in wire form, of the type that stands beside
// it. Only the one encoding that we would write is accepted, so that comparing
// Marshal()s compares what was sent and signed.
func parseBlob(name, text string) (ssh.PublicKey, error) {
	blob, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || strings.ContainsAny(text, "\r\n") {
		return nil, errors.New("the second word is not base64")
	}
	key, err := ssh.ParsePublicKey(blob)
	if err != nil {
		return nil, errors.New("the base64 is not a key, or it is incomplete")
	}
	if key.Type() != name {
		return nil, errors.New("the key is of another type than its first word says")
	}
	if !bytes.Equal(key.Marshal(), blob) {
		return nil, errors.New("the key is not in its normal encoding")
	}
	return key, nil
}

// ParseCertificate reads what sshd hands to AuthorizedPrincipalsCommand as %t and
// %k. The certificate is of any kind and signed by anybody: see [Verify].
func ParseCertificate(keyType, text string) (*ssh.Certificate, error) {
	if len(text) > maxCertificate {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrMalformed, maxCertificate)
	}
	if !strings.HasSuffix(keyType, certSuffix) {
		return nil, fmt.Errorf("%w: a key of type %q is no certificate", ErrMalformed, clip(keyType))
	}
	key, err := parseBlob(keyType, text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, fmt.Errorf("%w: not a certificate", ErrMalformed)
	}
	return cert, nil
}

// ParseAuthInfo reads SSH_AUTH_INFO_0, in which sshd tells PAM how the client
// authenticated, one method a line. Exactly one public key, and no other method,
// may stand there: sshd is set up to demand nothing else.
func ParseAuthInfo(info string) (*ssh.Certificate, error) {
	name, text, err := authInfo(info)
	if err != nil {
		return nil, err
	}
	return ParseCertificate(name, text)
}

// authInfo returns the type and the base64 of the one public key.
func authInfo(info string) (name, text string, err error) {
	if len(info) > maxAuthInfo {
		return "", "", fmt.Errorf("%w: longer than %d bytes", ErrMalformed, maxAuthInfo)
	}
	line := strings.TrimSuffix(info, "\n")
	if line == "" || strings.Contains(line, "\n") {
		return "", "", fmt.Errorf("%w: not exactly one method of authentication", ErrMalformed)
	}
	fields := strings.Split(line, " ")
	if len(fields) != 3 || fields[0] != "publickey" {
		return "", "", fmt.Errorf("%w: not authenticated by one public key", ErrMalformed)
	}
	return fields[1], fields[2], nil
}
