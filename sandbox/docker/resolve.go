package docker

import (
	"context"
	"regexp"
	"strings"

	"github.com/podspawn/podspawn/sandbox"
)

// maxRef bounds an image reference, as the domain does.
const maxRef = 255

// refPattern is looser than the domain's, which decides what a spec may say. It
// only keeps a reference from being anything else in the engine's URL.
var refPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@-]*$`)

// Image resolves a reference to the id of an image that the engine has. It never
// pulls.
//
// An image that declares volumes is refused: the engine would make each of them
// on the host's disk, outside the disk limit, and has no way to be told not to.
func (r *Runtime) Image(ctx context.Context, ref string) (sandbox.Image, error) {
	if len(ref) > maxRef || !refPattern.MatchString(ref) || strings.Contains(ref, "..") || strings.Contains(ref, "//") {
		return sandbox.Image{}, sandbox.Errorf(sandbox.KindInvalidSpec, "write it like podspawn/base or debian:bookworm",
			"image: %.80q is no image reference", ref)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	img, err := r.api.ImageInspect(ctx, ref)
	switch {
	case gone(err):
		return sandbox.Image{}, errNoImage(ref, err)
	case err != nil:
		return sandbox.Image{}, engineError("look up image", err)
	}
	out := sandbox.Image{ID: img.ID}
	if !idPattern.MatchString(img.ID) {
		return sandbox.Image{}, engineError("look up image", errOddID)
	}
	if img.Os != "" && img.Os != "linux" {
		return sandbox.Image{}, sandbox.Errorf(sandbox.KindInvalidSpec, "choose an image for linux",
			"image: %q is made for %.20s", ref, img.Os)
	}
	if img.Config != nil {
		if len(img.Config.Volumes) > 0 {
			return sandbox.Image{}, sandbox.Errorf(sandbox.KindInvalidSpec,
				"rebuild the image without VOLUME; volumes are not supported yet",
				"image: %q declares volumes, which no disk limit holds for", ref)
		}
		out.User = img.Config.User
	}
	return out, nil
}
