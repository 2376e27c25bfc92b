// Package sshdtest is for tests that need a real sshd. They run in a lab: mount,
// network and process namespaces of their own, in which /etc is an overlay and
// /run, /var/log and the state's folders are empty, so that sshd, PAM, users and
// name service are the machine's own and nothing of it is changed.
//
// A test package calls [Main] from its TestMain and [Need] in each test that
// wants the lab. Main runs the test binary once more inside a lab; packages that
// run at the same time each have one, with the same port on a loopback interface
// of their own.
package sshdtest
