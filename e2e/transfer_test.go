package e2e

import (
	"bytes"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// big writes a file of random bytes.
func big(t *testing.T, size int) (path string, content []byte) {
	t.Helper()
	content = make([]byte, size)
	_, _ = rand.Read(content) // never fails
	path = filepath.Join(shortDir(t), "big")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, content
}

// sftp with the image's server, and with the guest's where the image has none:
// batch, resume, links, owners. The guest's runs as the user, so it opens no
// more than she may.
func TestSFTP(t *testing.T) {
	s := create(t)
	c := connectable(t, s)
	path, content := big(t, 3<<20)
	dir := shortDir(t)
	half, back := filepath.Join(dir, "half"), filepath.Join(dir, "back")
	if err := os.WriteFile(half, content[:1<<20], 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T, where string) {
		if r := c.ssh(t, nil, "rm -rf "+where+"; mkdir -p "+where); r.code != 0 {
			t.Fatalf("%v", r)
		}
		batch := strings.Join([]string{
			"cd " + where, "put " + half + " f", "reput " + path + " f", "get f " + back, "mkdir d", "put " + half + " d/x", "chmod 640 d/x",
			"rename d/x d/y", "symlink f link", "ls -l", "df", "ln f hard", "rm hard",
		}, "\n") + "\n"
		if r := run(t, strings.NewReader(batch), "sftp", append(c.args(), "-b", "-", c.login)...); r.code != 0 {
			t.Fatalf("sftp: %v", r)
		}
		if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, content) {
			t.Errorf("resumed upload and download: %d bytes, %v, want the file", len(got), err)
		}
		if r := c.ssh(t, nil, "cd "+where+"; stat -c '%n %a %U %s' d/y; readlink link; ls"); r.stdout != "d/y 640 dev 1048576\nf\nd\nf\nlink\n" {
			t.Errorf("afterwards: %v", r)
		}
		for _, bad := range []string{"put " + half + " /root/x", "get /etc/shadow " + back, "put " + half + " /usr/bin/true"} {
			if r := run(t, strings.NewReader(bad+"\n"), "sftp", append(c.args(), "-b", "-", c.login)...); r.code == 0 {
				t.Errorf("sftp %s as dev: %v", bad, r)
			}
		}
		if err := os.Remove(back); err != nil {
			t.Error(err)
		}
		if r := run(t, nil, "scp", append(c.args(), path, c.login+":"+where+"/scp")...); r.code != 0 {
			t.Errorf("scp in: %v", r)
		}
		if r := run(t, nil, "scp", append(c.args(), "-r", c.login+":"+where, back)...); r.code != 0 {
			t.Errorf("scp -r out: %v", r)
		}
		if got, err := os.ReadFile(filepath.Join(back, "scp")); err != nil || !bytes.Equal(got, content) {
			t.Errorf("scp both ways: %d bytes, %v", len(got), err)
		}
		if err := os.RemoveAll(back); err != nil {
			t.Error(err)
		}
	}
	t.Run("image's server", func(t *testing.T) { check(t, "/workspace/image") })
	if r := c.ssh(t, nil, "sudo -n rm /usr/lib/openssh/sftp-server && ! ls /usr/lib/openssh/sftp-server 2>/dev/null"); r.code != 0 {
		t.Fatalf("remove the image's server: %v", r)
	}
	t.Run("guest's server", func(t *testing.T) { check(t, "/workspace/guest") })
	if r := c.ssh(t, nil, "sudo -n rm /usr/bin/scp"); r.code != 0 {
		t.Fatalf("remove scp: %v", r)
	}
	if r := run(t, nil, "scp", append(c.args("-O"), path, c.login+":/workspace/")...); r.code == 0 || !strings.Contains(r.stderr, "scp: command not found") {
		t.Errorf("scp -O to an image without scp: %v", r)
	}
}

// What people use over ssh: rsync, git both ways, a hundred megabytes.
func TestTransfers(t *testing.T) {
	s := create(t)
	c := connectable(t, s)
	dir := shortDir(t)
	src, back := filepath.Join(dir, "src"), filepath.Join(dir, "back")
	sh := func(script string, env ...string) result {
		t.Helper()
		ssh := "ssh " + strings.Join(c.args(), " ")
		r := run(t, nil, "env", append(append([]string{"SSH=" + ssh, "GIT_SSH_COMMAND=" + ssh, "L=" + c.login, "SRC=" + src, "BACK=" + back}, env...), "bash", "-ec", script)...)
		if r.code != 0 {
			t.Errorf("%s: %v", script, r)
		}
		return r
	}
	sh(`mkdir -p $SRC/a/b; seq 100000 > $SRC/a/seq; ln -s seq $SRC/a/link; head -c 1M /dev/urandom > "$SRC/a/b/ü x"; chmod 750 $SRC/a/b
		rsync -a -e "$SSH" $SRC/ $L:/workspace/r/; rm $SRC/a/seq; rsync -a --delete -e "$SSH" $SRC/ $L:/workspace/r/
		rsync -a -e "$SSH" $L:/workspace/r/ $BACK/; diff -r --no-dereference $SRC $BACK; test ! -e $BACK/a/seq`)
	sh(`export HOME=$SRC; git config --global user.email a@b; git config --global user.name a; git config --global init.defaultBranch main
		$SSH $L 'git init -q --bare -b main /workspace/repo.git'
		git init -q $SRC/repo; cd $SRC/repo; head -c 3M /dev/urandom > f; git add f; git commit -qm one; git push -q $L:/workspace/repo.git main
		git clone -q $L:/workspace/repo.git $SRC/clone; cmp f $SRC/clone/f`)
	path, content := big(t, 100<<20)
	if r := run(t, nil, "scp", append(c.args(), path, c.login+":/workspace/big")...); r.code != 0 {
		t.Fatalf("scp: %v", r)
	}
	cmd := exec.Command("ssh", append(c.args(c.login), "cat /workspace/big")...)
	if got, err := cmd.Output(); err != nil || !bytes.Equal(got, content) {
		t.Errorf("a hundred megabytes back: %d, %v", len(got), err)
	}
}
