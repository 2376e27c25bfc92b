package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
)

func filesOf(ref, path string) string { return of(ref) + "/files?path=" + url.QueryEscape(path) }

// OpenFile opens a file, or a folder as a tar archive.
func (c *Client) OpenFile(ctx context.Context, ref string, r api.FileRange) (api.FileContent, error) {
	h := http.Header{}
	switch {
	case r.Offset < 0:
		h.Set("Range", fmt.Sprintf("bytes=%d", r.Offset))
	case r.Length > 0:
		h.Set("Range", fmt.Sprintf("bytes=%d-%d", r.Offset, r.Offset+r.Length-1))
	case r.Offset > 0:
		h.Set("Range", fmt.Sprintf("bytes=%d-", r.Offset))
	}
	resp, err := c.send(ctx, http.MethodGet, filesOf(ref, r.Path), h, nil)
	if err != nil {
		return api.FileContent{}, err
	}
	if resp.StatusCode == http.StatusRequestedRangeNotSatisfiable { // an empty file, or its very end
		defer resp.Body.Close()
		size, _ := strconv.ParseInt(strings.TrimPrefix(resp.Header.Get("Content-Range"), "bytes */"), 10, 64)
		if r.Offset <= size {
			return api.FileContent{Info: api.FileInfo{Type: "file", Size: size}, Offset: size, Body: io.NopCloser(strings.NewReader(""))}, nil
		}
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		defer resp.Body.Close()
		return api.FileContent{}, c.failed(resp)
	}
	f := api.FileContent{
		Info: api.FileInfo{Type: resp.Header.Get("Podspawn-File-Type"), Mode: resp.Header.Get("Podspawn-File-Mode")},
		Body: resp.Body, Length: resp.ContentLength,
	}
	if f.Info.Type != "dir" {
		if f.Length < 0 {
			resp.Body.Close()
			return api.FileContent{}, c.noServer(resp.StatusCode)
		}
		f.Info.Size = f.Length
	} else {
		f.Length = -1
	}
	if t, err := time.Parse(time.RFC3339, resp.Header.Get("Podspawn-Expires-At")); err == nil {
		f.ExpiresAt = t
	}
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		f.Info.Modified = t
	}
	if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &f.Offset); err == nil {
		if _, total, ok := strings.Cut(resp.Header.Get("Content-Range"), "/"); ok {
			f.Info.Size, _ = strconv.ParseInt(total, 10, 64)
		}
	}
	return f, nil
}

// WriteFile replaces a file, or unpacks a tar archive into a folder.
func (c *Client) WriteFile(ctx context.Context, ref string, r api.FileWrite) (api.FileWritten, error) {
	target := filesOf(ref, r.Path)
	if r.Mode != 0 {
		target += fmt.Sprintf("&mode=%04o", r.Mode)
	}
	h := http.Header{"Content-Type": {"application/octet-stream"}}
	if r.Tar {
		h.Set("Content-Type", "application/x-tar")
	}
	resp, err := c.send(ctx, http.MethodPut, target, h, r.Body)
	if err != nil {
		return api.FileWritten{}, err
	}
	defer resp.Body.Close()
	var out api.FileWritten
	return out, c.read(ctx, resp, &out)
}

// ListFiles lists a folder.
func (c *Client) ListFiles(ctx context.Context, ref, path string) (api.FileList, error) {
	var out api.FileList
	return out, c.do(ctx, http.MethodGet, of(ref)+"/files/list?path="+url.QueryEscape(path), nil, nil, &out)
}

// DeleteFile deletes a file or a folder.
func (c *Client) DeleteFile(ctx context.Context, ref, path string, recursive bool) error {
	target := filesOf(ref, path)
	if recursive {
		target += "&recursive=true"
	}
	resp, err := c.send(ctx, http.MethodDelete, target, nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return c.failed(resp)
	}
	return nil
}

// send makes a request with a body of any kind.
func (c *Client) send(ctx context.Context, method, target string, h http.Header, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+target, body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if h != nil {
		req.Header = h
	}
	if c.agent != "" {
		req.Header.Set("User-Agent", c.agent)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	return resp, nil
}

// failed turns an answer that is none of success into its error.
func (c *Client) failed(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return &sandbox.Error{Kind: sandbox.KindUnavailable, Msg: "the answer of " + c.where + " broke off", Err: err, Hint: "try again"}
	}
	mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")) // "" is no problem document
	return c.problem(resp.StatusCode, mt, b)
}
