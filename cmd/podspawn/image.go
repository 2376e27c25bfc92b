package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/sandbox/image"
)

type imageBuildResult struct {
	Image string `json:"image"`
	ID    string `json:"id"`
	Built bool   `json:"built"`
}

type imageEntry struct {
	ID      string    `json:"id"`
	Tags    []string  `json:"tags"`
	Size    int64     `json:"size"`
	Created time.Time `json:"created"`
}

type imageListResult struct {
	Images []imageEntry `json:"images"`
}

type imagePruneResult struct {
	Removed []string `json:"removed"`
	Files   []string `json:"files"`
}

func newImageCommand(a *app) *cobra.Command {
	return parent("image", "base images, on Docker directly", groupAdmin,
		&cobra.Command{
			Use: "build", Short: "build podspawn/base from Debian packages, unless it is there", Args: exact(),
			RunE: func(cmd *cobra.Command, _ []string) error { return runImageBuild(cmd.Context(), a) },
		},
		&cobra.Command{
			Use: "list", Aliases: []string{"ls"}, Short: "list the images that podspawn built", Args: exact(),
			RunE: func(cmd *cobra.Command, _ []string) error { return runImageList(cmd.Context(), a) },
		},
		&cobra.Command{
			Use: "prune", Short: "remove older builds that no sandbox uses", Args: exact(),
			RunE: func(cmd *cobra.Command, _ []string) error { return runImagePrune(cmd.Context(), a) },
		})
}

func runImageBuild(ctx context.Context, a *app) error {
	c, err := a.loadConfig(nil)
	if err != nil {
		return err
	}
	o := image.BuildOptions{Socket: c.Docker.Socket}
	if !a.quiet {
		o.Out = a.stderr // progress; the result is the image's name
	}
	r, err := image.Build(ctx, o)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(imageBuildResult{Image: r.Ref, ID: r.ID, Built: r.New})
	}
	_, err = fmt.Fprintln(a.stdout, r.Ref)
	return err
}

func runImageList(ctx context.Context, a *app) error {
	c, err := a.loadConfig(nil)
	if err != nil {
		return err
	}
	all, err := image.List(ctx, c.Docker.Socket)
	if err != nil {
		return err
	}
	out := imageListResult{Images: []imageEntry{}}
	rows := [][]string{{"IMAGE", "ID", "SIZE", "CREATED"}}
	now := time.Now()
	for _, i := range all {
		out.Images = append(out.Images, imageEntry{ID: i.ID, Tags: append([]string{}, i.Tags...), Size: i.Size, Created: i.Created})
		rows = append(rows, []string{strings.Join(i.Tags, " "), shortID(i.ID), fmt.Sprintf("%dm", i.Size>>20), when(i.Created, now)})
	}
	switch {
	case a.json:
		return a.printJSON(out)
	case a.quiet:
		return a.printLines(idsOf(all))
	}
	return printTable(a.stdout, rows)
}

func runImagePrune(ctx context.Context, a *app) error {
	c, err := a.loadConfig(nil)
	if err != nil {
		return err
	}
	gone, files, err := image.Prune(ctx, c.Docker.Socket, "")
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(imagePruneResult{Removed: idsOf(gone), Files: append([]string{}, files...)})
	}
	return a.printLines(append(idsOf(gone), files...))
}

func idsOf(images []image.Image) []string {
	ids := make([]string, len(images))
	for i := range images {
		ids[i] = images[i].ID
	}
	return ids
}

func (a *app) printLines(lines []string) error {
	for _, line := range lines {
		if _, err := fmt.Fprintln(a.stdout, oneLine(line)); err != nil {
			return err
		}
	}
	return nil
}

// shortID is an image's id as Docker shows it.
func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}
