// Package sockets owns the directories through which the host talks to the
// guests: one small tmpfs a sandbox, which the runtime mounts into the container
// and in which the guest makes its socket. It implements [sandbox.Sockets].
//
// The sandbox writes into that directory as root, so nothing in it is trusted:
//
//   - What it writes is memory of ours, not host disk: 16 KiB and 8 inodes.
//   - A socket opened by path would be whatever the sandbox put there meanwhile;
//     a symlink to the container engine's socket, for one. So the socket is opened
//     once, before foreign code runs, as an O_PATH descriptor that follows no link
//     and leaves no mount; it is identified, the tmpfs is made read-only (which keeps
//     the socket usable and everything else as it is), and from then on the host
//     connects to /proc/self/fd/N.
//   - A setuid file is of no use to anybody: nosuid, noexec, in a parent directory
//     that only root enters.
//
// The package has to run in the mount namespace that the container engine is in,
// and checks that its mount is there, but does not know what is mounted where in
// a container, or what is said over a connection.
package sockets
