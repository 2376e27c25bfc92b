// Package daemon is the root broker behind /run/podspawn/daemon.sock: it holds
// the state, the CA keys and the Docker socket, and answers three kinds of
// peers, told apart by the kernel (SO_PEERCRED):
//
//   - the principals hook (user podspawn-auth): may this certificate log in?
//   - the PAM step (root, below an sshd): claim the certificate, once per
//     connection, from inside the portal's network namespace;
//   - the session hook (a sandbox's own uid, below a claimed sshd): a connected
//     descriptor to the guest, once per channel;
//   - the API process (user podspawn-api): everything of the public API, each
//     request with the credential of its caller, which is verified here again.
//
// It has no network listener and parses nothing that a guest sends but the
// fixed-size answer to a preamble. Sessions' bytes do not pass through it, so
// that it can be restarted under them.
package daemon
