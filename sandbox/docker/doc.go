// Package docker runs sandboxes as containers of a Docker engine under gVisor. It
// is the only place that speaks to Docker: [Runtime] implements sandbox.Runtime,
// [Images] is what package image builds upon, and [DaemonRuntimes] defines, once,
// the engine's runtime entries that server set-up writes and [Runtime] asks for.
//
// Everything dangerous about a container is decided here and not by the caller:
// capabilities, mounts, namespaces, runtime. It never pulls an image, never uses
// a runtime other than its own, and knows nothing of specs, tenants or the guest's
// protocol; where the guest and its socket directory appear inside is configuration.
package docker
