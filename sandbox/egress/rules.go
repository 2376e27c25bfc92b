package egress

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/podspawn/podspawn/sandbox"
)

// ResolverPort is where the resolver listens, on [ResolverAddr]; sandboxes ask
// that address on port 53.
const ResolverPort = 7753

const (
	table     = "podspawn-egress"
	deniedSet = "denied"
	otherSet  = "denied-other"

	// deniedFor is how long the kernel remembers a refused destination: so often it
	// is reported again.
	deniedFor = "2m"
	// deniedRate is how many refused packets of one sandbox are looked at.
	deniedRate = "20/minute burst 20 packets"
	// maxConns are the connections out of one sandbox that the host keeps track of:
	// the table of all connections is shared.
	maxConns = 1024
)

// ResolverAddr is the address that sandboxes of the pool ask names of: the first
// of the pool's last four addresses that a host can have.
func ResolverAddr(pool netip.Prefix) netip.Addr {
	a := pool.Masked().Addr().As4()
	host := uint32(1)<<(32-pool.Bits()) - 1
	for i := range a {
		a[i] |= byte(host >> (24 - 8*i))
	}
	return netip.AddrFrom4(a).Prev().Prev()
}

// Sources are the addresses whose questions the resolver answers.
func Sources(pool netip.Prefix) netip.Prefix { return pool.Masked() }

// rules is the whole table in nft's language. It begins by making and deleting
// the table, so that what nft applies, in one transaction, replaces any other.
//
// fib daddr type and fib saddr . iif ask the kernel's own routing: what is an
// address of the host, and whether an answer would go back the way the packet
// came. So nothing here names a sandbox.
func rules(pool netip.Prefix) string {
	return strings.NewReplacer(
		"TABLE", "inet "+table, "BRIDGES", `"`+sandbox.BridgePrefix+`*"`,
		"RESOLVER", ResolverAddr(pool).String(), "PORT", fmt.Sprint(ResolverPort),
		"POOL", pool.Masked().String(), "PRIVATE", list(sandbox.NotPublic()),
		"DENIED", deniedSet, "OTHER", otherSet, "KEPT", deniedFor, "RATE", deniedRate, "CONNS", fmt.Sprint(maxConns),
	).Replace(template)
}

func list(ps []netip.Prefix) string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = p.String()
	}
	return "{ " + strings.Join(out, ", ") + " }"
}

const template = `
table TABLE
delete table TABLE
table TABLE {
	set DENIED {
		type ifname . ipv4_addr . ipv4_addr . inet_proto . inet_service
		size 65535
		flags dynamic,timeout
		timeout KEPT
	}
	set OTHER {
		type ifname . ipv4_addr . ipv4_addr . inet_proto
		size 65535
		flags dynamic,timeout
		timeout KEPT
	}
	set rate {
		type ifname
		size 65535
		flags dynamic,timeout
		timeout KEPT
	}
	set connections {
		type ifname
		size 65535
		flags dynamic
	}
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		iifname BRIDGES meta nfproto != ipv4 drop
		iifname BRIDGES ip saddr != POOL drop
		iifname BRIDGES fib saddr type local drop
		iifname BRIDGES fib saddr . iif oif 0 drop
	}
	chain names {
		type nat hook prerouting priority dstnat - 10; policy accept;
		iifname BRIDGES ip daddr RESOLVER meta l4proto { tcp, udp } th dport 53 dnat ip to RESOLVER:PORT
	}
	chain input {
		type filter hook input priority filter - 10; policy accept;
		iifname BRIDGES goto to-host
		iifname != "lo" ip daddr RESOLVER drop
	}
	chain to-host {
		ct state established,related accept
		ip daddr RESOLVER meta l4proto { tcp, udp } th dport PORT add @connections { iifname ct count over CONNS } goto refuse
		ip daddr RESOLVER meta l4proto { tcp, udp } th dport PORT accept
		goto refuse
	}
	chain forward {
		type filter hook forward priority filter - 10; policy accept;
		iifname BRIDGES goto out
		oifname BRIDGES ct state established,related accept
		oifname BRIDGES drop
	}
	chain out {
		oifname BRIDGES goto refuse
		ct state established,related accept
		ct state invalid drop
		fib daddr type != unicast goto refuse
		ip daddr PRIVATE goto refuse
		add @connections { iifname ct count over CONNS } goto refuse
		tcp flags syn tcp option maxseg size set rt mtu
		accept
	}
	chain output {
		type filter hook output priority filter - 10; policy accept;
		oifname BRIDGES ct state established,related accept
		oifname BRIDGES reject with icmpx admin-prohibited
	}
	chain refuse {
		meta l4proto { tcp, udp } add @rate { iifname limit rate RATE } add @DENIED { iifname . ip saddr . ip daddr . meta l4proto . th dport }
		meta l4proto != { tcp, udp } add @rate { iifname limit rate RATE } add @OTHER { iifname . ip saddr . ip daddr . meta l4proto }
		meta l4proto tcp reject with tcp reset
		reject with icmpx admin-prohibited
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		iifname BRIDGES oifname != BRIDGES masquerade
	}
}
`
