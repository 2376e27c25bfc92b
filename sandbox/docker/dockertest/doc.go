// Package dockertest gives tests a Docker engine of their own, with podspawn's
// gVisor runtimes and a small image, next to whatever runs on the machine. It is
// for tests of any package that needs the real thing; it knows nothing of sandboxes.
package dockertest
