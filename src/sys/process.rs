//! Children that inherit chosen descriptors and die with their parent. Called by the daemon's spawner, on a thread that
//! lives as long as the daemon: the kernel sends the parent-death signal when the *thread* that forked ends.

use super::inherit::COUNT;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

/// The number under which the first passed descriptor appears in the child; the next ones follow.
pub const FIRST_FD: RawFd = 3;

/// Makes a command's child a worker: `descriptors` appear as 3 and the next numbers (see [`super::inherit`]), it leads its
/// own process group (a terminal's ^C reaches the daemon only), and it is killed when the daemon dies.
pub fn make_worker(command: &mut Command, descriptors: [OwnedFd; COUNT]) {
    let parent = std::process::id();
    command.process_group(0);
    let hook = move || {
        // Lifted first: one of them may itself have a number that another shall get. The lifted copies close on exec, the final ones do not.
        let mut lifted = [0; COUNT];
        for (lifted, descriptor) in lifted.iter_mut().zip(&descriptors) {
            // SAFETY: fcntl with F_DUPFD_CLOEXEC touches no memory; the descriptor is open, `descriptors` owns it.
            *lifted = check(unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 16) })?;
        }
        for (number, lifted) in (FIRST_FD..).zip(lifted) {
            // SAFETY: dup2 touches no memory. What it replaces is this child's copy; the parent keeps these
            // numbers taken while it forks (see `occupy_low_descriptors`), so it is not the standard library's own pipe.
            check(unsafe { libc::dup2(lifted, number) })?;
        }
        // SAFETY: prctl with PR_SET_PDEATHSIG takes a plain number.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
        // The parent may have died before the line above.
        if std::os::unix::process::parent_id() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec the hook makes only async-signal-safe calls (fcntl, dup2, prctl, getppid) and
    // allocates nothing.
    unsafe { command.pre_exec(hook) };
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes the descriptor numbers that a worker's descriptors will have, as far as they are free. Held over a spawn, it
/// keeps the standard library's error pipe off these numbers.
///
/// # Errors
/// Out of descriptors.
pub fn occupy_low_descriptors() -> io::Result<Vec<OwnedFd>> {
    let mut taken = Vec::new();
    loop {
        let file: OwnedFd = std::fs::File::open("/dev/null")?.into();
        if file.as_raw_fd() >= FIRST_FD + COUNT as RawFd {
            return Ok(taken);
        }
        taken.push(file);
    }
}

/// When memory runs out, this process is to be killed before others: it can be started again.
///
/// # Errors
/// The kernel refuses, which it does only where `/proc` is closed to the process.
pub fn prefer_for_oom_kill() -> io::Result<()> {
    // Raising one's own score takes no privilege; 500 counts as half of the memory on top of what the process has.
    std::fs::write("/proc/self/oom_score_adj", "500")
}

/// Kills a worker with everything it started. Only for a child that was not waited for yet: its number is still its own.
pub fn kill_group(pid: u32) {
    if let Ok(pid) = i32::try_from(pid)
        && pid > 1
    {
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// How a process ended, in words: `exit status 3`, `signal 9 (SIGKILL): …`.
pub fn describe_exit(status: ExitStatus) -> String {
    if let Some(code) = status.code() {
        return format!("exit status {code}");
    }
    let Some(number) = status.signal() else {
        return status.to_string();
    };
    let name = nix::sys::signal::Signal::try_from(number).map_or("unknown", |signal| signal.as_str());
    let hint = match number {
        libc::SIGKILL => ": killed by hand, or by the kernel for want of memory (see `dmesg`)",
        libc::SIGBUS => ": a mapped file was cut short or its disk failed",
        libc::SIGILL => ": an instruction this CPU lacks",
        libc::SIGABRT | libc::SIGSEGV => ": a bug; the worker's last log lines may tell more",
        _ => "",
    };
    format!("signal {number} ({name}){hint}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_worker_finds_its_descriptors_and_no_others() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (mut control, its_end) = UnixStream::pair().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "read line <&4; echo \"got $line\" >&3; ls -l /proc/self/fd | grep -c socket >&3; exit 7"]);
        command.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let third = std::fs::File::open("/dev/null").unwrap();
        make_worker(&mut command, [theirs.into(), its_end.into(), third.into()]);
        let low = occupy_low_descriptors().unwrap();
        let mut child = command.spawn().unwrap();
        drop((command, low));
        control.write_all(b"spec\n").unwrap();
        let mut answer = String::new();
        ours.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "got spec\n2\n");
        assert_eq!(describe_exit(child.wait().unwrap()), "exit status 7");
    }

    #[test]
    fn a_missing_program_is_an_error_of_the_parent() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new("/no/such/program");
        let third = ours.try_clone().unwrap();
        make_worker(&mut command, [ours.into(), theirs.into(), third.into()]);
        let _low = occupy_low_descriptors().unwrap();
        assert_eq!(command.spawn().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn ends_are_told_in_words() {
        let mut child = Command::new("/bin/sleep").arg("60").process_group(0).spawn().unwrap();
        kill_group(child.id());
        assert!(describe_exit(child.wait().unwrap()).starts_with("signal 9 (SIGKILL): killed by hand"));
    }
}
