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

// How long a user certificate lives: long enough to connect with, no longer. An
// open connection outlives its certificate.
const (
	DefaultTTL = 5 * time.Minute
	MaxTTL     = 15 * time.Minute
	MinTTL     = time.Second
	// Backdate is how far the clocks of the parties may differ.
	Backdate = time.Minute
)

const (
	maxForceCommand = 1 << 10
	maxAddresses    = 32
	maxAddressList  = 2 << 10
)

var (
	// keyIDPattern has nothing that could end a line or quote anything where key ids
	// are printed: in sshd's log, in hooks, in the audit log.
	keyIDPattern = regexp.MustCompile(`^[A-Za-z0-9._:@/+=-]{1,256}$`)
	// principalPattern has neither "*" nor a comma, which mean something to readers of
	// principal lists.
	principalPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	commandPattern   = regexp.MustCompile(`^[\x20-\x7e]+$`)
)

// Grant says what a user certificate permits. Nothing in it may come from a
// client without having been decided on, except PublicKey and SourceAddress.
type Grant struct {
	Serial    uint64 // unique under this CA, neither 0 nor 2^64-1
	KeyID     string // see [KeyID]
	Principal string // the one login
	PublicKey ssh.PublicKey
	Now       time.Time
	TTL       time.Duration // 0 is DefaultTTL
	// ForceCommand is the same constant in every certificate.
	ForceCommand string
	// SourceAddress is a comma-separated list of addresses and networks that the
	// client must connect from; "" is everywhere.
	SourceAddress string

	PTY, PortForwarding, Agent, X11 bool

	Binding Binding // V may be 0
}

// Issue signs a user certificate. An error that wraps [ErrGrant] means that the
// grant is at fault; any other that the CA could not sign. What Issue returns
// passes [Verify].
func (ca *CA) Issue(g Grant) (*ssh.Certificate, error) {
	cert, err := g.certificate()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGrant, err)
	}
	if err := ca.sign(cert); err != nil {
		return nil, err
	}
	// A signer may be a device or an agent: what it signed is looked at like a
	// stranger's before it leaves.
	if _, err := Verify(cert, g.Principal, []ssh.PublicKey{ca.PublicKey()}, g.Now, Policy{g.ForceCommand}); err != nil {
		return nil, fmt.Errorf("check the new certificate: %w", err)
	}
	return cert, nil
}

// certificate returns what the grant asks for, not signed yet.
func (g Grant) certificate() (*ssh.Certificate, error) {
	switch {
	case g.Serial == 0 || g.Serial == math.MaxUint64:
		return nil, fmt.Errorf("serial %d is never issued", g.Serial)
	case !keyIDPattern.MatchString(g.KeyID):
		return nil, errors.New("the key id has other characters than A-Z a-z 0-9 . _ : @ / + = - or is not 1 to 256 long")
	case !principalPattern.MatchString(g.Principal):
		return nil, errors.New("the principal is no login: a-z, 0-9 and dashes, at most 63")
	case !commandPattern.MatchString(g.ForceCommand) || len(g.ForceCommand) > maxForceCommand:
		return nil, errors.New("the forced command is missing or not one line of printable characters")
	case g.PublicKey == nil:
		return nil, errors.New("no public key")
	}
	if err := checkKey(g.PublicKey); err != nil {
		return nil, err
	}
	after, before, err := window(g.Now, g.TTL)
	if err != nil {
		return nil, err
	}
	options := map[string]string{optForceCommand: g.ForceCommand}
	if g.SourceAddress != "" {
		if options[optSourceAddress], err = normalAddresses(g.SourceAddress); err != nil {
			return nil, fmt.Errorf("source address: %w", err)
		}
	}
	extensions, err := g.extensions()
	if err != nil {
		return nil, err
	}
	return &ssh.Certificate{
		Key:             g.PublicKey,
		Serial:          g.Serial,
		CertType:        ssh.UserCert,
		KeyId:           g.KeyID,
		ValidPrincipals: []string{g.Principal},
		ValidAfter:      after,
		ValidBefore:     before,
		Permissions:     ssh.Permissions{CriticalOptions: options, Extensions: extensions},
	}, nil
}

// window returns the validity as certificates carry it. Fractions are cut off at
// the end, so that no certificate lives longer than was asked for.
func window(now time.Time, ttl time.Duration) (after, before uint64, err error) {
	if ttl == 0 {
		ttl = DefaultTTL
	}
	if ttl < MinTTL || ttl > MaxTTL {
		return 0, 0, fmt.Errorf("a lifetime of %s is not between %s and %s", ttl, MinTTL, MaxTTL)
	}
	from := now.Add(-Backdate).Unix()
	if from <= 0 {
		return 0, 0, errors.New("the clock is not set")
	}
	return uint64(from), uint64(now.Add(ttl).Unix()), nil
}

func (g Grant) extensions() (map[string]string, error) {
	b := g.Binding
	if b.V == 0 {
		b.V = BindingVersion
	}
	binding, err := b.encode()
	if err != nil {
		return nil, fmt.Errorf("binding: %w", err)
	}
	ext := map[string]string{BindingExtension: binding}
	for name, granted := range map[string]bool{extPTY: g.PTY, extPortForwarding: g.PortForwarding, extAgent: g.Agent, extX11: g.X11} {
		if granted {
			ext[name] = ""
		}
	}
	return ext, nil
}

// normalAddresses returns a list of networks in the one form that OpenSSH reads:
// it refuses the whole certificate when an address has bits outside its mask.
func normalAddresses(list string) (string, error) {
	if len(list) > maxAddressList {
		return "", errors.New("the list is too long")
	}
	var out []string
	for item := range strings.SplitSeq(list, ",") {
		p, err := parseNetwork(strings.TrimSpace(item))
		if err != nil {
			return "", err
		}
		if s := p.String(); !slices.Contains(out, s) {
			out = append(out, s)
		}
		if len(out) > maxAddresses {
			return "", fmt.Errorf("more than %d networks", maxAddresses)
		}
	}
	return strings.Join(out, ","), nil
}

func parseNetwork(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a network such as 192.0.2.0/24", clip(s))
		}
		p = netip.PrefixFrom(addr, addr.BitLen())
	}
	if p.Addr().Is4In6() {
		// sshd sees such clients as IPv4, where this network would match nobody.
		if p.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("%q mixes IPv4 and IPv6", clip(s))
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}
