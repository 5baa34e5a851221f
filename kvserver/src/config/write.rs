//! Writing a configuration file that explains itself.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use super::{ClusterConfig, ConfigError, NUMBERS, is_toml};

impl ClusterConfig {
    /// Writes the configuration of a new cluster of `nodes` nodes on this machine, in the form that the name
    /// of `path` tells, and returns it. The cluster gets a random id. The settings stand there with their
    /// defaults, commented out.
    ///
    /// # Errors
    /// [`ConfigError`] if the number of nodes is impossible, or the file exists or cannot be written. A file
    /// that exists is never changed, also if two processes write it at the same time.
    ///
    /// # Blocking
    /// Until the file is on disk.
    pub fn write_default(path: &Path, nodes: usize) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Write { path: path.to_owned(), source };
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| failed(io::Error::other(error.to_string())))?;
        let config = Self::default_cluster(nodes, u128::from_le_bytes(random))?;
        write_new(
            path,
            &config.render(is_toml(path)),
            u64::from_le_bytes(*random.first_chunk().expect("16 bytes")),
        )
        .map_err(failed)?;
        Ok(config)
    }

    /// The text of the file, without a password.
    fn render(&self, is_toml: bool) -> String {
        let mut text = String::new();
        self.render_into(is_toml, &mut text).expect("writing to a string cannot fail");
        text
    }

    fn render_into(&self, is_toml: bool, text: &mut String) -> std::fmt::Result {
        let (equals, quote) = if is_toml { (" = ", "\"") } else { ("=", "") };
        writeln!(
            text,
            "# A Squall cluster. Every node reads the same file; restart the nodes after a change.\n"
        )?;
        writeln!(
            text,
            "# Tells this cluster from any other. Never change it: data of another id is refused."
        )?;
        let id = format!("{:032x}", self.settings.cluster_id);
        let (a, b, c, d, e) = (&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]);
        writeln!(text, "cluster_id{equals}{quote}{a}-{b}-{c}-{d}-{e}{quote}\n")?;
        writeln!(text, "# What clients must authenticate with. Without it, only this machine may connect.")?;
        writeln!(text, "# password{equals}{quote}…{quote}\n")?;
        writeln!(text, "# The address to bind to, if it is not the node's own, as in a container.")?;
        writeln!(text, "# listen{equals}{quote}0.0.0.0{quote}\n")?;
        for number in NUMBERS {
            for line in number.meaning {
                writeln!(text, "# {line}")?;
            }
            writeln!(text, "# {}{equals}{}\n", number.name, number.default)?;
        }
        writeln!(
            text,
            "# The nodes: an address, and the ports for the nodes, for Redis clients, and for status and metrics."
        )?;
        for (index, node) in self.nodes.iter().enumerate() {
            let (ip, rpc, redis, admin) = (node.ip, node.rpc_port, node.redis_port, node.admin_port);
            if is_toml {
                writeln!(
                    text,
                    "[[node]]\nip = \"{ip}\"\nport = {rpc}\nredis_port = {redis}\nadmin_port = {admin}\n"
                )?;
            } else {
                writeln!(text, "node{index}ip={ip}\nnode{index}port={rpc}")?;
                writeln!(text, "node{index}redisport={redis}\nnode{index}adminport={admin}")?;
            }
        }
        Ok(())
    }
}

/// Writes a file whole or not at all, and never over another.
fn write_new(path: &Path, text: &str, unique: u64) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{unique:016x}.tmp"));
    let temporary = Path::new(&temporary);
    let result = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).open(temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // Unlike a rename, a link does not replace a file that another process has written meanwhile.
        fs::hard_link(temporary, path)
    })();
    let _ = fs::remove_file(temporary);
    result?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_in_both_forms() {
        let config = ClusterConfig::default_cluster(3, 0x1234).unwrap();
        for name in ["test.conf", "test.toml"] {
            let text = config.render(is_toml(Path::new(name)));
            let read = ClusterConfig::parse(Path::new(name), &text).unwrap();
            assert_eq!(read.nodes, config.nodes, "{text}");
            assert_eq!(read.settings.cluster_id, 0x1234);
        }
    }

    #[test]
    fn each_setting_that_is_commented_out_can_be_commented_in() {
        let config = ClusterConfig::default_cluster(1, 1).unwrap();
        for name in ["test.conf", "test.toml"] {
            let text = config.render(is_toml(Path::new(name)));
            let commented_in = |line: &str| match line.strip_prefix("# ") {
                Some(setting)
                    if setting.split(['=', ' ']).next().is_some_and(|key| {
                        key == "password"
                            || key == "listen"
                            || NUMBERS.iter().any(|number| number.name == key)
                    }) =>
                {
                    format!("{setting}\n")
                }
                _ => format!("{line}\n"),
            };
            let text: String = text.lines().map(commented_in).collect();
            let read = ClusterConfig::parse(Path::new(name), &text).unwrap();
            assert!(read.settings.password.is_some() && read.settings.listen.is_some());
        }
    }

    #[test]
    fn a_file_that_exists_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.conf");
        let written = ClusterConfig::write_default(&path, 3).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(ClusterConfig::load(&path).unwrap().settings.cluster_id, written.settings.cluster_id);
        let error = ClusterConfig::write_default(&path, 5).unwrap_err();
        assert!(
            matches!(error, ConfigError::Write { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
        let other = ClusterConfig::write_default(&directory.path().join("other.toml"), 1).unwrap();
        assert_ne!(other.settings.cluster_id, written.settings.cluster_id);
    }
}
