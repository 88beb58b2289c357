#!/usr/bin/perl
# How often the NUMA node changes between neighbouring stretches of 17 pages of a process's weights. Usage: changes.pl PID
use strict;
use warnings;

my ($pid, $changes, $last) = ($ARGV[0], 0, undef);
open(my $maps, '<', "/proc/$pid/maps") or die "no process $pid";
while (<$maps>) {
    next unless m{^([0-9a-f]+)-([0-9a-f]+) .*memfd:omni-weights};
    no warnings 'portable';
    my ($start, $end) = (hex $1, hex $2);
    my @pages = map { $start + 69632 * $_ } 0 .. int(($end - $start - 1) / 69632);
    my ($addresses, $nodes) = (pack('Q*', @pages), pack('l*', (-1) x @pages));
    # move_pages(2) without nodes moves nothing and tells where each page is.
    syscall(279, $pid + 0, scalar(@pages), $addresses, 0, $nodes, 0) == 0 or die "move_pages: $!";
    for my $node (grep { $_ >= 0 } unpack('l*', $nodes)) {
        $changes++ if defined $last && $node != $last;
        $last = $node;
    }
}
print "$changes\n";
