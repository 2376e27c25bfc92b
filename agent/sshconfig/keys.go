package sshconfig

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
)

// KnownHosts reads the server's @cert-authority line and writes our own: for
// exactly this host and port, whatever the line claims to be for.
func KnownHosts(host string, port int, line string) (string, error) {
	if err := validHost(host); err != nil {
		return "", err
	}
	if port < 1 || port > 65535 {
		return "", fmt.Errorf("port %d is out of range", port)
	}
	marker, _, key, _, rest, err := ssh.ParseKnownHosts([]byte(line))
	if err != nil {
		return "", fmt.Errorf("read known_hosts line: %w", err)
	}
	if marker != "cert-authority" || len(bytes.TrimSpace(rest)) > 0 {
		return "", errors.New("the server's known_hosts is not one @cert-authority line")
	}
	if _, isCert := key.(*ssh.Certificate); isCert {
		return "", errors.New("the server's host authority is a certificate, not a key")
	}
	pattern := host
	if port != 22 {
		pattern = "[" + host + "]:" + strconv.Itoa(port)
	}
	return "@cert-authority " + pattern + " " + authorizedLine(key), nil
}

// Certificate reads a user certificate that was issued to login for the public
// key pub, and returns it as one line of our own making.
func Certificate(line, login string, pub ssh.PublicKey) (string, error) {
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return "", fmt.Errorf("read certificate: %w", err)
	}
	cert, ok := key.(*ssh.Certificate)
	switch {
	case !ok || cert.CertType != ssh.UserCert || len(options) > 0 || len(bytes.TrimSpace(rest)) > 0:
		return "", errors.New("the server's answer is not one user certificate")
	case !bytes.Equal(cert.Key.Marshal(), pub.Marshal()):
		return "", errors.New("the server's certificate is for another key")
	case len(cert.ValidPrincipals) != 1 || cert.ValidPrincipals[0] != login:
		return "", fmt.Errorf("the server's certificate is not for %s", login)
	}
	return authorizedLine(cert), nil
}

// PublicKey reads one plain public key of authorized_keys form, without options,
// and returns it as one line of our own making. Certificates are refused.
func PublicKey(line string) (string, ssh.PublicKey, error) {
	if len(line) > 16<<10 {
		return "", nil, errors.New("the public key exceeds 16 KiB")
	}
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return "", nil, errors.New("not a public key of OpenSSH's form (ssh-ed25519 AAAA…)")
	}
	if len(options) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return "", nil, errors.New("more than one public key")
	}
	if _, isCert := key.(*ssh.Certificate); isCert {
		return "", nil, errors.New("a certificate, not a public key")
	}
	return authorizedLine(key), key, nil
}

func authorizedLine(key ssh.PublicKey) string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(key)), "\n")
}
