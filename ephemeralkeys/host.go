package ephemeralkeys

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// MaxHostTTL bounds host certificates. They live long: clients that meet an
// expired one would ask their users about the bare key, and users say yes.
const MaxHostTTL = 10 * 365 * 24 * time.Hour

const maxHostnames = 64

var hostnamePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?)*$`)

// IssueHost signs a machine's own public key, by which clients that trust this CA
// know it under the given names and addresses. Patterns are refused: they would
// vouch for other machines.
func (ca *CA) IssueHost(pub ssh.PublicKey, hostnames []string, now time.Time, ttl time.Duration, serial uint64) (*ssh.Certificate, error) {
	cert, err := hostCertificate(pub, hostnames, now, ttl, serial)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGrant, err)
	}
	if err := ca.sign(cert); err != nil {
		return nil, err
	}
	return cert, nil
}

func hostCertificate(pub ssh.PublicKey, hostnames []string, now time.Time, ttl time.Duration, serial uint64) (*ssh.Certificate, error) {
	switch {
	case serial == 0 || serial == math.MaxUint64:
		return nil, fmt.Errorf("serial %d is never issued", serial)
	case pub == nil:
		return nil, errors.New("no public key")
	case len(hostnames) == 0 || len(hostnames) > maxHostnames:
		return nil, fmt.Errorf("%d host names are not between 1 and %d", len(hostnames), maxHostnames)
	case ttl < MinTTL || ttl > MaxHostTTL:
		return nil, fmt.Errorf("a lifetime of %s is not between %s and %s", ttl, MinTTL, MaxHostTTL)
	}
	if err := checkKey(pub); err != nil {
		return nil, err
	}
	from := now.Add(-Backdate).Unix()
	if from <= 0 {
		return nil, errors.New("the clock is not set")
	}
	var names []string
	for _, name := range hostnames {
		addr, err := netip.ParseAddr(name)
		switch {
		case err == nil && addr.Zone() == "":
			name = addr.String()
		case len(name) > 253 || !hostnamePattern.MatchString(name):
			return nil, fmt.Errorf("%q is neither a host name nor an address", clip(name))
		default:
			name = strings.ToLower(name) // clients compare in lower case
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return &ssh.Certificate{
		Key:             pub,
		Serial:          serial,
		CertType:        ssh.HostCert,
		KeyId:           "podspawn:host:" + keyIDPart(names[0]),
		ValidPrincipals: names,
		ValidAfter:      uint64(from),
		ValidBefore:     uint64(now.Add(ttl).Unix()),
	}, nil
}
