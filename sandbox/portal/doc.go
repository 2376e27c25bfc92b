// Package portal owns what a sandbox has on the host besides its container:
//
//   - its login name, a line in the files that libnss-extrausers reads (logins.go),
//   - its portal, the network namespace that PAM (pam_usernet) moves each of its
//     SSH connections into (netns.go),
//   - the processes that run under its uid, sshd's and our hooks' (processes.go),
//     and what those may leave behind (leftovers.go),
//   - and, once for all sandboxes, the host rule: no uid of a sandbox ever has a
//     connection in the host's own network namespace (hostrule.go).
//
// A portal holds a loopback interface and nothing else: no route, no link to the
// host. The package knows neither containers nor certificates.
package portal
