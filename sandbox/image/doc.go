// Package image makes the base image of sandboxes out of the host's own package
// sources: no container registry is asked for anything. The recipe is a list of
// packages and a small script; its digest is the cache's key and the image's label,
// so that building again costs nothing until the recipe changes.
//
// It runs as root on the host, with mmdebstrap, and reaches the engine through
// package docker. It knows nothing of sandboxes.
package image
