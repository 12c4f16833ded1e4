//! The templates and the contract are part of the program: a file that comes or goes makes it anew.

fn main() {
    println!("cargo::rerun-if-changed=../../sdk/templates");
    println!("cargo::rerun-if-changed=../../wit");
}
