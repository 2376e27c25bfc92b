// Package pid1 is podspawn-guest: the first process of every sandbox, and the
// sudo that runs inside it. It owns the processes of a sandbox: it starts them as
// any user of the sandbox's own /etc/passwd, gives them terminals, carries their
// streams, reaps what they leave behind, and ends everything at the deadline,
// whether or not anything on the host is still alive to ask for it.
//
// It listens on the socket in [guest.SocketDir] before any other code runs. The
// kernel of the sandbox tells who connects: the host has no uid in here, and
// everything else is a process of the sandbox, which gets sudo and nothing more.
//
// It knows nothing of SSH, certificates, tenants or Docker: what a connection may
// do is said by the host in a [guest.Preamble]. It links neither libc nor
// net/http: it is mapped into every sandbox and starts with each.
package pid1
