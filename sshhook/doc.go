// Package sshhook is what the host's sshd runs for a sandbox login: the logic
// of podspawn-hook. It decides nothing. Every question goes to the daemon, which
// knows the caller by the kernel's word (SO_PEERCRED), and on any doubt a hook
// prints nothing and fails, so that sshd refuses the login.
//
// One login runs it in this order (sshd_config(5), pam_exec(8)):
//
//  1. "principals USER TYPE KEY", as podspawn-auth, twice, before the client has
//     proved that it owns the key: read-only and without side effects.
//  2. "pam-session", as root, at open_session and at close_session: tells the
//     daemon to claim the certificate, after pam_usernet has moved the connection
//     into its portal.
//  3. "session", as the uid of that one sandbox, once per channel. sshd runs
//     ForceCommand through the login shell, which is this program as well: it
//     treats "-c ANYTHING", and a name with a leading dash, as "session".
//
// The bytes of a session go between this process and the guest; the daemon hands
// over the connected descriptor and sees none of them. Package install writes the
// configuration that makes sshd call these hooks.
package sshhook
