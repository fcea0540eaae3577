"""DExperts: the difference of two models steers a third one."""
