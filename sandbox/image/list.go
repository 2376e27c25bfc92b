package image

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/podspawn/podspawn/sandbox/docker"
)

// Image is an image that podspawn made.
type Image struct {
	ID      string
	Tags    []string
	Recipe  string // digest of what it was built from
	Size    int64
	Created time.Time
}

// List returns the images that podspawn made. Others are not mentioned.
func List(ctx context.Context, socket string) ([]Image, error) {
	images, err := docker.OpenImages(socket)
	if err != nil {
		return nil, err
	}
	defer images.Close()
	all, err := images.ListImages(ctx)
	if err != nil {
		return nil, err
	}
	return convert(all), nil
}

// Prune removes the images that podspawn made, that a later build took the name
// from and that no sandbox uses, and all but the newest file system in the cache
// ("" is /var/cache/podspawn). It returns what it removed.
func Prune(ctx context.Context, socket, cache string) (removed []Image, files []string, err error) {
	if cache == "" {
		cache = "/var/cache/podspawn"
	}
	images, err := docker.OpenImages(socket)
	if err != nil {
		return nil, nil, err
	}
	defer images.Close()
	gone, err := images.PruneImages(ctx)
	if err != nil {
		return convert(gone), nil, err
	}
	files, err = pruneCache(ctx, cache)
	return convert(gone), files, err
}

func pruneCache(ctx context.Context, cache string) ([]string, error) {
	if _, err := os.Stat(cache); os.IsNotExist(err) {
		return nil, nil
	}
	unlock, err := lock(ctx, filepath.Join(cache, "image.lock"), io.Discard)
	if err != nil {
		return nil, err
	}
	defer unlock()
	entries, err := os.ReadDir(cache)
	if err != nil {
		return nil, fmt.Errorf("read the cache: %w", err)
	}
	var tars []fs.FileInfo
	var removed []string
	for _, e := range entries {
		path := filepath.Join(cache, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), ".build-") && e.IsDir():
			// Nobody builds while we hold the lock: a build that died left it.
			if err := os.RemoveAll(path); err != nil {
				return removed, fmt.Errorf("remove an unfinished build: %w", err)
			}
			removed = append(removed, path)
		case strings.HasPrefix(e.Name(), "base-") && strings.HasSuffix(e.Name(), ".tar") && e.Type().IsRegular():
			info, err := e.Info()
			if err != nil {
				return removed, fmt.Errorf("read the cache: %w", err)
			}
			tars = append(tars, info)
		}
	}
	slices.SortFunc(tars, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for _, old := range tars[min(1, len(tars)):] {
		path := filepath.Join(cache, old.Name())
		if err := os.Remove(path); err != nil {
			return removed, fmt.Errorf("remove an old file system: %w", err)
		}
		removed = append(removed, path)
	}
	return removed, nil
}

func convert(all []docker.LocalImage) []Image {
	out := make([]Image, 0, len(all))
	for _, i := range all {
		out = append(out, Image{ID: i.ID, Tags: i.Tags, Recipe: i.Labels[labelRecipe], Size: i.Size, Created: i.Created})
	}
	return out
}
