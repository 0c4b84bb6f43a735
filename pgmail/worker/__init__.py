"""Sends: supervisor -> claimer -> sender -> settler, around a lane book that decides who goes next."""
