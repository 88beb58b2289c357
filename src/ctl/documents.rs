//! Man pages and shell completions out of the command lines themselves, so that they cannot fall behind. The committed
//! ones under `man/` and `completions/` are compared with these by a test.

use super::error::Error;
use super::output::Output;
use clap::{Args, Command};
use clap_complete::Shell;
use std::io;
use std::path::{Path, PathBuf};

/// Options of `completions`.
#[derive(Clone, Debug, Args)]
pub struct Completions {
    /// Shell to write for
    pub shell: Shell,
    /// Program to complete
    #[arg(long, value_name = "NAME", default_value = "omnictl", value_parser = ["omnictl", "omni-inferd", "omni-proxy"])]
    pub program: String,
}

/// Options of `man`.
#[derive(Clone, Debug, Args)]
pub struct Man {
    /// Directory to write all pages to [default: print omnictl's page]
    #[arg(value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

/// One generated file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// File name.
    pub name: String,
    /// Content.
    pub content: Vec<u8>,
}

/// The completion script of `command` for a shell, named as that shell looks for it.
pub fn completion(command: &Command, shell: Shell) -> Document {
    let program = command.get_name().to_string();
    let mut content = Vec::new();
    clap_complete::generate(shell, &mut command.clone(), &program, &mut content);
    let name = match shell {
        Shell::Zsh => format!("_{program}"),
        Shell::Fish => format!("{program}.fish"),
        _ => program,
    };
    Document { name, content }
}

/// The man pages of `command` and of each of its subcommands. Daemons belong to section 8.
pub fn man_pages(command: &Command) -> io::Result<Vec<Document>> {
    let section = if command.get_name() == "omnictl" { "1" } else { "8" };
    let mut command = command.clone().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    collect(&command, section, &mut pages)?;
    Ok(pages)
}

fn collect(command: &Command, section: &str, pages: &mut Vec<Document>) -> io::Result<()> {
    let man = clap_mangen::Man::new(command.clone()).section(section).manual("omni-inferd");
    let mut content = Vec::new();
    man.render(&mut content)?;
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    pages.push(Document { name: format!("{name}.{section}"), content });
    command.get_subcommands().filter(|sub| !sub.is_hide_set()).try_for_each(|sub| collect(sub, section, pages))
}

/// Prints the completion script of one of `programs`.
pub fn completions(args: &Completions, programs: &[Command], out: Output) -> Result<(), Error> {
    let command = programs.iter().find(|command| command.get_name() == args.program);
    let command = command.ok_or_else(|| Error::NotFound(format!("there is no program {}", args.program)))?;
    out.write(&String::from_utf8_lossy(&completion(command, args.shell).content))
}

/// Writes the man pages of all `programs`, or prints the first's.
pub fn man(args: &Man, programs: &[Command], out: Output) -> Result<(), Error> {
    let Some(directory) = &args.directory else {
        let first = programs.first().map(man_pages).transpose()?.and_then(|pages| pages.into_iter().next());
        return out.write(&first.map_or(String::new(), |page| String::from_utf8_lossy(&page.content).into_owned()));
    };
    std::fs::create_dir_all(directory)?;
    let mut count = 0;
    for page in programs.iter().map(man_pages).collect::<io::Result<Vec<_>>>()?.into_iter().flatten() {
        write(directory, &page)?;
        count += 1;
    }
    out.line(&format!("wrote {count} pages to {}", directory.display()))
}

fn write(directory: &Path, page: &Document) -> Result<(), Error> {
    let path = directory.join(&page.name);
    std::fs::write(&path, &page.content)
        .map_err(|error| Error::Failed(format!("cannot write {}: {error}", path.display())))
}
