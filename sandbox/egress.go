package sandbox

import (
	"net/netip"
	"slices"
	"strings"
)

// Egress is a policy for connections out of the sandbox.
type Egress string

const (
	// EgressNone gives the sandbox a loopback interface and nothing else.
	EgressNone Egress = "none"
	// EgressPublic gives it a network of its own from which it reaches public
	// addresses and our resolver: no private, link-local or metadata address, not
	// the host, not another sandbox.
	EgressPublic Egress = "public"
)

// Within reports whether e asks for no more than limit grants. What neither knows
// is not within anything.
func (e Egress) Within(limit Egress) bool {
	switch e {
	case EgressNone:
		return true
	case EgressPublic:
		return limit == EgressPublic
	default:
		return false
	}
}

// BridgePrefix begins the names of sandboxes' bridges on the host. Firewall rules
// match it, so that they hold for a bridge before it exists.
const BridgePrefix = "ps-"

// bridgeIDLen is what the kernel's 15 characters leave for the id: 60 random bits.
const bridgeIDLen = 12

// Bridge returns the name of the sandbox's bridge on the host.
func (id ID) Bridge() string {
	s := strings.TrimPrefix(string(id), "sbx_")
	return BridgePrefix + s[:min(len(s), bridgeIDLen)]
}

// notPublic4 and notPublic6 are the addresses that no sandbox gets to: the special
// purpose registries' entries that are not globally reachable, and those through
// which IPv4 addresses could be spelled as IPv6.
var (
	notPublic4 = [...]string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
		"192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
	}
	notPublic6 = [...]string{
		"::/8", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
		"5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
	}
)

// NotPublic returns the IPv4 networks that are not public, none within another.
func NotPublic() []netip.Prefix { return prefixes(notPublic4[:]) }

func prefixes(texts []string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(texts))
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// PublicAddr reports whether a is a public unicast address. An IPv4 address in
// IPv6 form is judged as what it is.
func PublicAddr(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if !a.IsValid() {
		return false
	}
	list := notPublic6[:]
	if a.Is4() {
		list = notPublic4[:]
	}
	return !slices.ContainsFunc(prefixes(list), func(p netip.Prefix) bool { return p.Contains(a) })
}
