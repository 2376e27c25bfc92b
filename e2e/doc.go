// Package e2e tests podspawn as its users meet it: the installed binaries, the
// machine's own sshd and OpenSSH's clients, Docker and gVisor, with nothing
// faked. It is only tests.
//
// They change the machine they run on, so they run in a lab:
//
//	go test -exec "$PWD/scripts/lab.sh --install" ./e2e
package e2e
