// Package egress holds sandboxes' networks to what their policy allows, on the
// host's side of each bridge. One nftables table, the same whatever sandboxes
// there are, matches every interface whose name begins with sandbox.BridgePrefix:
//
//   - a packet whose source address does not belong behind the bridge that it came
//     over, and every IPv6 packet, is dropped;
//   - to the host itself only the resolver's port is open;
//   - out of the host only public unicast IPv4 addresses are, masqueraded;
//   - everything else is rejected at once and noted in a set, from which the audit
//     log learns of it;
//   - nobody connects to a sandbox over its bridge, the host included.
//
// Because the rules are about a name and not about a sandbox, they hold for a
// bridge before it exists, and a crash leaves none behind. While the kernel does
// not have them, no sandbox with a network is started; [Guard.Keep] puts them back
// within a second, and takes the bridges down when it can't.
//
// It does not know Docker, which makes the bridges, nor the resolver, whose
// address it keeps on the loopback interface. It runs as root and reads nothing
// that a sandbox sends but the kernel's record of fixed size about a refused packet.
package egress
