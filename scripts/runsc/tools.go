//go:build tools

// Package runsc pins the gVisor that scripts/runsc.sh builds. It is a module of
// its own, so that gVisor's requirements stay out of podspawn's.
package runsc

import _ "gvisor.dev/gvisor/runsc"
