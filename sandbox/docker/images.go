package docker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
)

// LabelImage is on every image that podspawn made; its value says which.
const LabelImage = "dev.podspawn.image"

// maxImportAnswer bounds one line of the engine's answer to an import.
const maxImportAnswer = 64 << 10

// Images reaches the images of an engine. It is safe for concurrent use.
type Images struct{ api *client.Client }

// LocalImage is an image that podspawn made.
type LocalImage struct {
	ID      string
	Tags    []string
	Labels  map[string]string
	Size    int64
	Created time.Time
}

// OpenImages returns the images of the engine behind a unix socket ("" is
// /var/run/docker.sock), without talking to it. Close it when done.
func OpenImages(socket string) (*Images, error) {
	api, err := dial(socket)
	if err != nil {
		return nil, err
	}
	return &Images{api: api}, nil
}

// Close closes idle connections.
func (im *Images) Close() error { return im.api.Close() }

// ImportImage makes an image of a root file system in tar form. ref is NAME:TAG,
// changes are instructions in the syntax of a Dockerfile.
func (im *Images) ImportImage(ctx context.Context, root io.Reader, ref string, changes []string) (id string, err error) {
	body, err := im.api.ImageImport(ctx, image.ImportSource{Source: root, SourceName: "-"}, ref, image.ImportOptions{Changes: changes})
	if err != nil {
		return "", engineError("import image", err)
	}
	defer body.Close()
	// The answer is a line of JSON for each step. The last status is the id; an
	// error comes with status 200 like everything else.
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxImportAnswer)
	for lines.Scan() {
		var line struct {
			Status string `json:"status"`
			Error  string `json:"error"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return "", fmt.Errorf("import image: read the engine's answer: %w", err)
		}
		if line.Error != "" {
			return "", engineError("import image", errors.New(line.Error))
		}
		if idPattern.MatchString(line.Status) {
			id = line.Status
		}
	}
	if err := lines.Err(); err != nil {
		return "", engineError("import image", err)
	}
	if id == "" {
		return "", engineError("import image", errOddID)
	}
	return id, nil
}

// FindImage returns the image that ref names, whoever made it; ok is false when there is none.
func (im *Images) FindImage(ctx context.Context, ref string) (found LocalImage, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	img, err := im.api.ImageInspect(ctx, ref)
	switch {
	case gone(err):
		return LocalImage{}, false, nil
	case err != nil:
		return LocalImage{}, false, engineError("look up image", err)
	}
	found = LocalImage{ID: img.ID, Tags: img.RepoTags, Size: img.Size}
	if img.Config != nil {
		found.Labels = img.Config.Labels
	}
	if t, err := time.Parse(time.RFC3339Nano, img.Created); err == nil {
		found.Created = t
	}
	return found, true, nil
}

// ListImages returns the images that podspawn made, newest first.
func (im *Images) ListImages(ctx context.Context) ([]LocalImage, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	imgs, err := im.api.ImageList(ctx, image.ListOptions{Filters: filters.NewArgs(filters.Arg("label", LabelImage))})
	if err != nil {
		return nil, engineError("list images", err)
	}
	out := make([]LocalImage, 0, len(imgs))
	for _, i := range imgs {
		l := LocalImage{ID: i.ID, Labels: i.Labels, Size: i.Size, Created: time.Unix(i.Created, 0).UTC()}
		for _, t := range i.RepoTags {
			if t != "<none>:<none>" {
				l.Tags = append(l.Tags, t)
			}
		}
		out = append(out, l)
	}
	return out, nil
}

// PruneImages removes the images that podspawn made, that have no name any more
// and that no container uses. It returns those that it removed, also on an error.
func (im *Images) PruneImages(ctx context.Context) ([]LocalImage, error) {
	all, err := im.ListImages(ctx)
	if err != nil {
		return nil, err
	}
	var removed []LocalImage
	for _, i := range all {
		if len(i.Tags) > 0 {
			continue
		}
		_, err := im.api.ImageRemove(ctx, i.ID, image.RemoveOptions{PruneChildren: true})
		switch {
		case err == nil:
			removed = append(removed, i)
		case gone(err), cerrdefs.IsConflict(err): // in use
		default:
			return removed, engineError("remove image", err)
		}
	}
	return removed, nil
}
